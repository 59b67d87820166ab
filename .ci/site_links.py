"""A hook of MkDocs: pages from outside docs/, links between them as in the repository, and every link of the site followed.

What a page links to in the repository becomes a page or a file of the site. A link that leads nowhere is a warning, which
`mkdocs build --strict` makes an error.
"""

import ast
import logging
import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # of the repository, and what they are called in the site; all pages of it lie beside each other
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/miniature/README.md": "miniature.md",
}
LINK = re.compile(r'(\]\(|src=")([^)"#:\s]+)')
PUBLIC = re.compile(r"^::: ms_omni\.(\w+)$", re.MULTILINE)
TARGET = re.compile(r'(?:href|src)="([^"#:]*)(#[^"]*)?"')
log = logging.getLogger("mkdocs.hooks.site_links")


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def modules():
    """{public name: module} of ms_omni, which imports a name when it is asked for."""
    for node in ast.parse((ROOT / "ms_omni/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS":
            return ast.literal_eval(node.value)
    raise AssertionError("ms_omni/__init__.py has no _EXPORTS")


def on_page_markdown(markdown, page, config, files):
    source = next((name for name, uri in PAGES.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")

    def in_site(match):
        path = os.path.normpath(os.path.join(os.path.dirname(source), match[2]))
        if not (ROOT / path).is_file():  # MkDocs says so
            return match[0]
        if path in PAGES or path.startswith("docs/"):
            return match[1] + PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(f"files/{path}") is None:
            files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
        return f"{match[1]}files/{path}"

    public = modules()
    named = PUBLIC.sub(
        lambda match: f"::: ms_omni.{public[match[1]]}.{match[1]}" if match[1] in public else match[0], markdown
    )
    return LINK.sub(in_site, named)


def on_post_build(config):
    """Also links in HTML, which MkDocs does not look at."""
    site = Path(config.site_dir)
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path, text in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link, anchor in TARGET.findall(text):
            target = (path.parent / link).resolve() if link else path
            if not target.exists():
                log.warning("%s links to %s, which is not there", path.relative_to(site), link)
            elif anchor and target in pages and f'id="{anchor[1:]}"' not in pages[target]:
                log.warning("%s links to %s%s, where there is no such anchor", path.relative_to(site), link, anchor)

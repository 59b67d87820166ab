"""The page's files: its logic under node, what it refers to, and what it needs from nowhere else."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from ms_omni.serve.app import STATIC, Page

NODE = shutil.which("node")
FILES = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}


@pytest.mark.skipif(not NODE, reason="node is not here: the page's logic is not tested")
def test_logic_under_node(tmp_path):
    for path in [*STATIC.glob("*.js"), *(Path(__file__).parent / "page").glob("*.mjs")]:
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    run = subprocess.run([NODE, "--test"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"pass (\d+)", run.stdout)[1]) > 20


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    """So that the strict policy that the page sets can be kept."""
    page = FILES["index.html"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in page and "unsafe" not in page
    assert not re.search(r"\s(style|on\w+)=", page) and not re.search(r"<script(?![^>]*\ssrc=)", page)
    outside = {address for text in FILES.values() for address in re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text)}
    assert outside <= {"http://www.w3.org/2000/svg"}
    for text in SCRIPTS.values():
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval|document\.write)\b", text)


def test_references_are_kept():
    """Files, icons, elements and words that are asked for by name."""
    everything = "".join(FILES.values())
    assert set(re.findall(r"from \"\./([\w.-]+)\"", everything)) <= set(FILES)
    assert set(re.findall(r"(?:src|href)=\"([\w.-]+)(?=[\"#])", FILES["index.html"])) <= set(FILES)
    icons = set(re.findall(r"symbol id=\"([\w-]+)\"", FILES["icons.svg"]))
    assert set(re.findall(r"icons\.svg#([\w-]+)", FILES["index.html"])) <= icons
    assert set(re.findall(r"\bicon\(\"([\w-]+)\"\)", everything)) <= icons
    ids = re.findall(r"\sid=\"([\w-]+)\"", FILES["index.html"])
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"\$\(\"([\w-]+)\"\)", everything)) <= set(ids)
    words = set(re.findall(r"\b(\w+): \"", FILES["i18n.js"]))
    asked = set(re.findall(r"\bt\(\"(\w+)\"", everything)) | set(
        re.findall(r"data-t(?:-\w+)?=\"(\w+)\"", FILES["index.html"])
    )
    assert asked and asked <= words


def test_headers_and_types():
    client = TestClient(Starlette(routes=[Mount("/", Page())]))
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and page.headers["cache-control"] == "no-cache"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert client.get("/app.js").headers["content-type"].partition(";")[0] in ("text/javascript", "application/javascript")
    assert client.get("/icons.svg").headers["content-type"].startswith("image/svg+xml")
    assert client.get("/app.js", headers={"If-None-Match": client.get("/app.js").headers["etag"]}).status_code == 304
    assert client.get("/../page.py").status_code == client.get("/nothing").status_code == 404
    assert client.post("/v1/nothing").status_code == 404 and client.post("/app.js").status_code == 405

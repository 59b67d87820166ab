"""Metrics of several servers as one page, each sample with the name of its engine."""

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+.*)")


def merged(pages: Mapping[str, str]) -> str:
    """Prometheus text of engines, by their names, as one: a metric's samples stand together, as its format wants it."""
    families: dict[str, list[str]] = {}
    for engine, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                _, _, family, *_ = line.split(" ", 3)
                known = families.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif found := _SAMPLE.fullmatch(line):
                labels = ",".join(filter(None, [f'engine="{engine}"', found["labels"]]))
                families.setdefault(family, []).append(f"{found['name']}{{{labels}}} {found['value']}")
    return "".join(f"{line}\n" for lines in families.values() for line in lines)

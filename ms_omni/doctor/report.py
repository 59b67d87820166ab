"""One text file of all findings, for a bug report: what was found and with which versions, but not on whose machine.

What this process knows of its machine (its user, host and folders, the values of its environment) is taken out literally; so is what
looks like a path, an address or a secret, rather too much than too little. What is left are versions, numbers, names of operators and
words.
"""

import ipaddress
import os
import platform
import pwd
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from .runner import MARKS, Check, Finding, Options

VARIABLES = re.compile(r"(MS|MINDSPORE|ASCEND|HCCL|LCAL|GLOG|OMP|RANK|DEVICE)_|(RANK|CXX|LD_LIBRARY_PATH|PYTHONPATH)$")
"""Of the environment, that may explain something."""
PACKAGES = "ms-omni mindspore numpy transformers tokenizers safetensors mindone ml_dtypes te hccl".split()  # noqa: SIM905
HEAD = "ms-omni doctor: report without names, paths and addresses; read it before you send it"

USER, HOST, PATH, ADDRESS, SECRET = "<user>", "<host>", "<path>", "<address>", "<secret>"
PUBLIC = ("https://www.mindspore.cn/install",)
NOBODY = {"", "root", "localhost", "ip6-localhost", "ip6-loopback", "ip6-allnodes", "ip6-allrouters", "ip6-localnet"}
SHORTEST_SECRET = 4
LONG = 6  # letters of a name that no other word holds by chance
HIDDEN = re.compile(
    r"TOKEN|SECRET|PASS|PWD|KEY|CRED|AUTH|COOKIE|PRIVATE|SIGN|PROXY|DSN|UR[LI]|MAIL|HOST|ADDR|USER|NAME|_ID$|_IP"
)

URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.I)
ASSIGNED = re.compile(
    r"\b([\w-]*(?:token|passw\w*|secret|api[_-]?key|authorization|credential)\w*[\"']?\s*[=:]\s*)\S+", re.I
)
TOKENS = re.compile(
    r"\bbearer\s+\S+|\b(?:hf_|sk-|gh[a-z]_|glpat-|xox[a-z]-|AKIA|eyJ)[\w.-]{8,}"
    r"|(?<![\w/])(?=[\w+=-]*\d)(?=[\w+=-]*[a-z])[A-Za-z0-9_+=-]{32,}",
    re.I,
)
QUOTED_PATH = re.compile(r"(['\"`])[^'\"`\n]*/[^'\"`\n]*\1")
# From a slash at the beginning of a word to the last slash of that clause: names of folders may hold spaces.
ANY_PATH = re.compile(r"(?<![\w<>])(?:~[\w-]*|\.{1,2})?/(?:[^\n:;,'\"`()<>]*/)?[^\s:;,'\"`()<>]*|\b[\w.-]+(?:/[\w.-]+){2,}")
MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*")
MAC = re.compile(r"\b[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5,7}\b", re.I)
IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?=[\da-f.]*:[\da-f.]*:)[\da-f:.]+(?:%\w+)?", re.I)
DOMAIN = re.compile(
    r"\b(?:[a-z0-9_-]+\.)+(?:com|org|net|edu|gov|io|ai|cn|dev|local|localdomain|internal|intranet|lan|corp|home|cluster)\b",
    re.I,
)
VERSIONED = re.compile(r"(?:driver|firmware|version|cann)[ =:v]*$", re.I)
"""In front of four numbers with dots that are no address."""


def text_of(found: Iterable[tuple[Check, Iterable[Finding]]], options: Options) -> str:
    """The report."""
    lines = [HEAD, "", *_machine(), "", "environment:"]
    for name in sorted(filter(VARIABLES.match, os.environ)):
        lines.append(f"  {name}={'(set)' if is_hidden(name, os.environ[name]) else os.environ[name]}")
    for check, findings in found:
        lines += ["", f"[{check.name}]"]
        for finding in findings:
            lines += [f"{MARKS[finding.level]} {finding.what}", *([f"   -> {finding.do}"] if finding.do else [])]
    model = (options.model, Path(options.model).name) if options.model else ()
    return scrub("\n".join(lines) + "\n", identities(options.ascend_root, *model))


def _machine() -> Iterator[str]:
    kernel = re.findall(r"^[\d.]*", platform.release())[0]
    yield f"Python {platform.python_version()}, {platform.system()} {kernel}, {platform.machine()}"
    processor = re.search(r"^(?:model name|Model)\s*:\s*(.*)", "\n".join(_lines("/proc/cpuinfo")), re.M)
    system = re.search(r"^PRETTY_NAME=\"?(.*?)\"?$", "\n".join(_lines("/etc/os-release")), re.M)
    known = [match[1].strip() if match else "unknown" for match in (processor, system)]
    yield f"{known[0]}, {os.cpu_count()} cores; {known[1]}"
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    yield ", ".join(f"{name} {version}" for name, version in versions.items())


def _lines(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def scrub(text: str, known: dict[str, str]) -> str:
    """The text with every mark of its machine replaced by what kind of mark it was. known: see `identities`."""
    text = text.replace("\0", "")
    for index, url in enumerate(PUBLIC):
        text = text.replace(url, f"\0{index}\0")
    text = MAIL.sub(ADDRESS, URL.sub(ADDRESS, text))
    text = _replace(text, {name: "/-" for name, kind in known.items() if kind == PATH})  # what follows belongs to the path
    text = ANY_PATH.sub(PATH, QUOTED_PATH.sub(PATH, text))
    text = _replace(text, {name: kind for name, kind in known.items() if kind != PATH})
    text = TOKENS.sub(SECRET, ASSIGNED.sub(rf"\1{SECRET}", text))
    text = IPV6.sub(_ipv6, IPV4.sub(_ipv4, MAC.sub(ADDRESS, text)))
    text = DOMAIN.sub(HOST, text)
    for index, url in enumerate(PUBLIC):
        text = text.replace(f"\0{index}\0", url)
    return text


def _replace(text, known):
    """A name is found wherever it is a word, a longer one also inside of words; whatever its case."""
    for name in sorted(known, key=len, reverse=True):
        pattern = re.escape(name) if len(name) >= LONG else rf"(?<![^\W_]){re.escape(name)}(?![^\W_])"
        text = re.sub(pattern, known[name], text, flags=re.I)
    return text


def _ipv4(match):
    return match[0] if VERSIONED.search(match.string[: match.start()]) else ADDRESS


def _ipv6(match):
    for text in (match[0], match[0].rstrip(".:")):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            continue
        return ADDRESS + match[0][len(text) :]
    return match[0]


def identities(*paths: str) -> dict[str, str]:
    """`{literal: what stands for it}` of this process: its users, hosts and folders, `paths`, and what its environment hides."""
    known = {}
    for name, value in os.environ.items():
        if is_hidden(name, value):
            known[value] = SECRET
        known |= {part: PATH for part in value.split(os.pathsep) if part.startswith(("/", "~/"))}
    folders = [os.getcwd(), tempfile.gettempdir(), sys.prefix, sys.executable, *sys.path, *paths]
    known |= dict.fromkeys(folders, PATH)
    known |= dict.fromkeys(_hosts(), HOST)
    names = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:  # a container that runs as somebody whom it does not know
        pass
    else:
        known |= dict.fromkeys([user.pw_dir, os.path.expanduser("~")], PATH)
        names += [user.pw_name, user.pw_gecos.partition(",")[0]]
    known |= dict.fromkeys([word for name in names for word in (name, *name.split())], USER)
    return {text: kind for text, kind in known.items() if text.strip("/.~ ") and text.lower() not in NOBODY}


def is_hidden(name: str, value: str) -> bool:
    """Whether the value of a variable of the environment is nobody's business."""
    return len(value) >= SHORTEST_SECRET and bool(HIDDEN.search(name.upper()))


def _hosts():
    """Names of this machine, whole and in front of the first dot, and of those that it knows by name."""
    names = [os.uname().nodename, os.environ.get("HOSTNAME", "")]
    for file, skipped in (("/etc/hostname", 0), ("/etc/hosts", 1)):  # there an address comes first
        names += [word for line in _lines(file) for word in line.partition("#")[0].split()[skipped:]]
    return [part for name in names for part in (name, name.partition(".")[0], name.partition(".")[2])]

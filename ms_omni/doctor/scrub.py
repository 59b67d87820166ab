"""Takes out of a text what says whose machine it is about: names, paths, addresses, secrets. It rather takes too much.

What this process knows of its machine (its user, host and folders, the values of its environment) goes literally; what looks like
a path, an address or a secret goes as well. What is left are versions, numbers, names of operators and words.
"""

import ipaddress
import os
import pwd
import re
import sys
import tempfile
from pathlib import Path

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
    for name in sorted(known, key=len, reverse=True):
        text = _literal(name).sub(known[name], text)
    return text


def _literal(text):
    """A name is found wherever it is a word, a longer one also inside of words; whatever its case."""
    name = re.escape(text)
    return re.compile(name if len(text) >= LONG else rf"(?<![^\W_]){name}(?![^\W_])", re.I)


def _ipv4(match):
    before = match.string[: match.start()]
    return match[0] if VERSIONED.search(before) else ADDRESS


def _ipv6(match):
    for text in (match[0], match[0].rstrip(".:")):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            continue
        return ADDRESS + match[0][len(text) :]
    return match[0]


def identities(*paths: str | None) -> dict[str, str]:
    """`{literal: what stands for it}` of this process: its users, hosts and folders, `paths`, and what its environment hides."""
    known = {}
    for name, value in os.environ.items():
        if is_hidden(name, value):
            known[value] = SECRET
        known |= {part: PATH for part in value.split(os.pathsep) if part.startswith(("/", "~/"))}
    folders = [os.getcwd(), tempfile.gettempdir(), sys.prefix, sys.executable, *sys.path, *filter(None, paths)]
    known |= dict.fromkeys(folders, PATH)
    known |= dict.fromkeys(_hosts(), HOST)
    user = _account()
    known |= dict.fromkeys([user.pw_dir, os.path.expanduser("~")], PATH) if user else {}
    names = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
    names += [user.pw_name, user.pw_gecos.partition(",")[0]] if user else []
    known |= dict.fromkeys([word for name in names for word in (name, *name.split())], USER)
    return {text: kind for text, kind in known.items() if text.strip("/.~ ") and text.lower() not in NOBODY}


def is_hidden(name: str, value: str) -> bool:
    """Whether the value of a variable of the environment is nobody's business."""
    return len(value) >= SHORTEST_SECRET and bool(HIDDEN.search(name.upper()))


def _account():
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:  # a container that runs as somebody whom it does not know
        return None


def _hosts():
    """Names of this machine, whole and in front of the first dot, and of those that it knows by name."""
    names = [os.uname().nodename, os.environ.get("HOSTNAME", "")]
    for file in ("/etc/hostname", "/etc/hosts"):
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        words = [line.partition("#")[0].split() for line in lines]
        names += [word for line in words for word in (line if file == "/etc/hostname" else line[1:])]
    return [part for name in names for part in (name, name.partition(".")[0], name.partition(".")[2])]

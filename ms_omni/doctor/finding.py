"""What a check says."""

from dataclasses import dataclass

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"
MARKS = {OK: "ok", NOTE: "  ", WARNING: "!!", ERROR: "XX"}


@dataclass(frozen=True)
class Finding:
    """level: ok, note (for information), warning (it runs, but worse), error (it does not run here); what was found;
    do: what to do about it, given with every warning and error.
    """

    level: str
    what: str
    do: str = ""

    def __post_init__(self):
        assert self.level in MARKS and (self.do or self.level in (OK, NOTE)), self


def ok(what):
    """All is well."""
    return Finding(OK, what)


def note(what):
    """Worth knowing."""
    return Finding(NOTE, what)


def warning(what, do):
    """It runs, but worse than it could."""
    return Finding(WARNING, what, do)


def error(what, do):
    """The model does not run here like this."""
    return Finding(ERROR, what, do)


@dataclass(frozen=True)
class Options:
    """model: checkpoint folder that is to fit, or None; ascend_root: where the driver is installed."""

    model: str | None = None
    ascend_root: str = "/usr/local/Ascend"


def one_line(text, longest=300):
    """The text without line breaks, cut where nobody reads on: before MindSpore's list of C++ calls, or at `longest`."""
    text = " ".join(str(text).partition("\n----")[0].split())
    return text if len(text) <= longest else text[: longest - 3] + "..."

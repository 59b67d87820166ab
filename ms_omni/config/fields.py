"""Reading config.json strictly: declared fields, one report with every problem, the raw JSON kept for re-export.

The defaults of transformers' configuration classes differ from the published checkpoints (other codec ids, another audio
window, another rope base), so a key that is needed and absent is an error here and never a default. Only keys whose
value is the same constant in every published checkpoint may be left out.
"""
import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ms_omni.errors import ConfigError

CONFIG_FILE = "config.json"
ROPE_HINTS = {"rope_theta": " (nor is it in rope_parameters)",
              "mrope_section": " (expected in rope_scaling or rope_parameters)"}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one key may hold: `convert` returns the value to keep or raises ValueError with what was expected."""

    convert: Callable[[Any], Any]
    aliases: tuple[str, ...] = ()


def _declare(convert, default=dataclasses.MISSING, aliases=()):
    return dataclasses.field(default=default, metadata={"spec": Spec(convert, tuple(aliases))})


def _as_integer(value, low):
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or (low is not None and value < low):
        raise ValueError("an integer" if low is None else f"an integer of at least {low}")
    return int(value)


def integer(low: int | None = 1, default=dataclasses.MISSING, aliases=()):
    """A whole number of at least `low`. With `default=None` the key may be absent or null."""
    def convert(value):
        return None if value is None and default is None else _as_integer(value, low)
    return _declare(convert, default, aliases)


def number(default=dataclasses.MISSING, positive: bool = True):
    """A finite number, kept as float."""
    def convert(value):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or (positive and value <= 0):
            raise ValueError("a positive number" if positive else "a number")
        return float(value)
    return _declare(convert, default)


def flag(default=dataclasses.MISSING):
    """true or false."""
    def convert(value):
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    return _declare(convert, default)


def choice(*values, default=dataclasses.MISSING):
    """One of the values this implementation supports."""
    def convert(value):
        if value not in values or isinstance(value, bool) != isinstance(values[0], bool):
            raise ValueError(f"{json.dumps(values[0])} (the only value supported)" if len(values) == 1
                             else "one of " + ", ".join(map(json.dumps, values)))
        return value
    return _declare(convert, default)


def integers(low: int = 0, at_least: int = 0, default=dataclasses.MISSING):
    """A list of whole numbers, kept as a tuple; null is an empty list where one is allowed."""
    def convert(value):
        value = [] if value is None else value
        if not isinstance(value, (list, tuple)) or len(value) < at_least:
            raise ValueError(f"a list of at least {at_least} integers" if at_least else "a list of integers")
        try:
            return tuple(_as_integer(item, low) for item in value)
        except ValueError as error:
            raise ValueError(f"a list in which each item is {error}") from None
    return _declare(convert, default)


def name_table(default=dataclasses.MISSING):
    """A non-empty table from name to id, such as the talker's speakers."""
    def convert(value):
        if not isinstance(value, Mapping) or not value:
            raise ValueError("a table from name to id with at least one entry")
        try:
            return {str(name): _as_integer(number_, 0) for name, number_ in value.items()}
        except ValueError as error:
            raise ValueError(f"a table in which each id is {error}") from None
    return _declare(convert, default)


def section(kind: type):
    """A nested configuration object of class `kind`."""
    return dataclasses.field(metadata={"section": kind})


def optional_section(kind: type):
    """A nested configuration object that a class may decide to leave out (None)."""
    return dataclasses.field(default=None, metadata={"section": kind})


def shown(value: Any) -> str:
    """A value as it stands in the JSON, short enough for a message."""
    try:
        text = json.dumps(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigSection:
    """Base of the configuration classes: a frozen record of declared fields plus the JSON it came from.

    `raw` keeps keys that this implementation does not read, so that a re-export loses nothing; it takes no part in
    comparison, so configurations saved by different versions of transformers are equal when the model is the same.
    """

    raw: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        problems = [f"{key}: {message}" if key else message for key, message in self.check()]
        if problems:
            raise ConfigError(f"{type(self).__name__} does not describe a model:\n  " + "\n  ".join(problems))

    def check(self) -> list[tuple[str, str]]:
        """Relations between fields that do not hold, as (key, message); an empty list when all is well."""
        return []

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """Rewrite other spellings of `data` (a shallow copy) into the published one; problems go to `report`."""
        return data

    @classmethod
    def wants(cls, name: str, data: dict) -> bool:
        """Whether the nested section `name` is used by the model that `data` describes."""
        return True

    @classmethod
    def read(cls, data: Any, path: str, problems: list[str]) -> "ConfigSection | None":
        """Parse one JSON object; problems are appended with the full path of their key. None when there were any."""
        if not isinstance(data, Mapping):
            problems.append(f"{path or 'the file'}: got {shown(data)}, expected an object with keys and values")
            return None
        before, dot = len(problems), path + "." if path else ""

        def report(key, message):
            problems.append(f"{dot}{key}: {message}" if key else f"{path or cls.__name__}: {message}")
        source = cls.normalise(dict(data), report)
        values = {}
        for field in dataclasses.fields(cls):
            if "section" in field.metadata:
                values[field.name] = cls._read_section(field, source, dot, report, problems)
            elif "spec" in field.metadata:
                cls._read_value(field, source, values, report)
        if len(problems) > before:
            return None
        checked = object.__new__(cls)
        for name, value in {**values, "raw": copy.deepcopy(dict(data))}.items():
            object.__setattr__(checked, name, value)
        for key, message in checked.check():
            report(key, message)
        return checked if len(problems) == before else None

    @classmethod
    def _read_section(cls, field, source, dot, report, problems):
        if not cls.wants(field.name, source):
            return None
        if source.get(field.name) is None:
            report(field.name, "missing")
            return None
        return field.metadata["section"].read(source[field.name], dot + field.name, problems)

    @staticmethod
    def _read_value(field, source, values, report):
        spec = field.metadata["spec"]
        key = next((name for name in (field.name, *spec.aliases) if name in source), None)
        if key is None:
            if field.default is dataclasses.MISSING:
                report(field.name, "missing" + ROPE_HINTS.get(field.name, ""))
            else:
                values[field.name] = field.default
            return
        try:
            values[field.name] = spec.convert(source[key])
        except ValueError as error:
            report(key, f"got {shown(source[key])}, expected {error}")

    @classmethod
    def from_dict(cls, data: Any, source: str = "the configuration") -> "ConfigSection":
        """Build from the content of a config.json, or from any object with `to_dict()` (as transformers' classes have).

        Raises ConfigError that lists every missing or invalid key with its path.
        """
        if hasattr(data, "to_dict") and not isinstance(data, Mapping):
            data = data.to_dict()
        problems: list[str] = []
        config = cls.read(data, "", problems)
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise ConfigError(f"{source} is not a usable {cls.__name__}, {count}:\n  " + "\n  ".join(problems))
        return config

    def published(self) -> dict:
        """The fields under the published checkpoint's keys (nested sections included)."""
        out = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "section" in field.metadata and value is not None:
                out[field.name] = value.to_dict()
            elif "spec" in field.metadata and not (value is None and field.default is None):
                out[field.name] = list(value) if isinstance(value, tuple) else copy.deepcopy(value)
        return out

    def to_dict(self) -> dict:
        """The JSON object: exactly what was read, or, where fields were replaced since, that with the new values."""
        if self.raw and type(self).read(self.raw, "", []) == self:
            return copy.deepcopy(self.raw)
        known = {alias for field in dataclasses.fields(self) if "spec" in field.metadata
                 for alias in field.metadata["spec"].aliases}
        kept = {key: value for key, value in self.raw.items() if key not in known | {"rope_parameters"}}
        return {**copy.deepcopy(kept), **self.published()}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` into `folder` (made if needed) and return its path."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        path = target / CONFIG_FILE
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def read_config_json(folder: str | Path) -> tuple[dict, Path]:
    """The content of `folder`/config.json and its path. Raises ConfigError for a wrong folder or unreadable JSON."""
    root = Path(folder)
    if not root.exists():
        raise ConfigError(f"{str(folder)!r} is not a folder on this machine. A checkpoint is read from a local folder "
                          "and nothing is downloaded: fetch the checkpoint first and pass the folder's path.")
    if not root.is_dir():
        raise ConfigError(f"{root} is a file; expected the checkpoint's folder, the one that holds {CONFIG_FILE}.")
    path = root / CONFIG_FILE
    if not path.is_file():
        inside = ", ".join(sorted(item.name for item in root.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{root} has no {CONFIG_FILE} (it holds: {inside}); expected a Qwen3-Omni checkpoint folder.")
    return read_json_object(path), path


def read_json_object(path: Path) -> dict:
    """A JSON file whose top level is an object. Raises ConfigError saying where it stops being JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}. Fetch the file again.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {shown(content)}, expected a JSON object.")
    return content

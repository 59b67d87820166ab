"""The base of the configuration classes: strict reading with one report of every problem, lossless writing."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ms_omni.errors import ConfigError

from .fields import shown
from .files import CONFIG_FILE

ROPE_HINTS = {
    "rope_theta": " (nor is it in rope_parameters)",
    "mrope_section": " (expected in rope_scaling or rope_parameters)",
}


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
        replaced = {"rope_parameters"}  # other spellings of what `published` writes, and sections left out since
        for field in dataclasses.fields(self):
            if "spec" in field.metadata:
                replaced.update(field.metadata["spec"].aliases)
            elif "section" in field.metadata:
                replaced.add(field.name)
        kept = {key: value for key, value in self.raw.items() if key not in replaced}
        return {**copy.deepcopy(kept), **self.published()}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` into `folder` (made if needed) and return its path."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        path = target / CONFIG_FILE
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

"""The base of the configuration classes: pydantic models that read with one report of every problem and write losslessly."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args, get_origin

from pydantic import ConfigDict, PrivateAttr, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from ms_omni import load_arguments
from ms_omni.errors import ConfigError, warn_once

from .fields import NotNegative, shown
from .interface import GENERIC, TransformersInterface, published_content, read_config_json, read_json_object

MISSING_HINTS = {
    "rope_theta": " (nor is it in rope_parameters)",
    "mrope_section": " (expected in rope_scaling or rope_parameters)",
}


class Reading(NamedTuple):
    """How a file is read. strict: what is missing is a problem; related: what belongs together is checked."""

    strict: bool = False
    related: bool = False


class ConfigSection(TransformersInterface):
    """Declared fields, checked when they are set, and whatever else stood in the JSON, stored for a re-export.

    The constructor takes keywords, nested dicts and configurations of transformers, and the published checkpoint's value
    for what is not given. What belongs together (`check`) is looked at when a file is read, by `copy` with changes, and
    when a model is built, so that values can be set one after the other.

    Two configurations are equal when their fields are: files that different versions of transformers wrote for one model
    give equal objects, whatever keys they hold that no model reads.
    """

    model_config = ConfigDict(validate_assignment=True, protected_namespaces=(), defer_build=True)

    model_type: ClassVar[str] = ""
    section_path: ClassVar[tuple[str, ...]] = ()
    """The keys of this section in the config.json of a full checkpoint."""
    attribute_map: ClassVar[dict[str, str]] = {}
    """Other names of fields, as transformers has them: {name: field, or field of a section by its path}."""

    links: ClassVar[dict[str, str]] = {}
    """Fields of sections that must hold the value of another, and take it where they are not given: {path: path}."""

    initializer_range: NotNegative = 0.02

    _read: dict = PrivateAttr(default_factory=dict)  # the fields as they were in the JSON

    def __init__(self, /, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(error, type(self), "the arguments are") from None

    __init__.__pydantic_base_init__ = True  # so that pydantic itself makes sections without calling it

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        kinds = {name: (info.annotation, *get_args(info.annotation)) for name, info in cls.model_fields.items()}
        cls.sub_configs = {
            name: kind
            for name, found in kinds.items()
            for kind in found
            if isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, ConfigSection)
        }

    # What a class may say about its JSON

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """Rewrite other spellings of `data` (a shallow copy) into the published one; problems go to `report`."""
        return data

    @classmethod
    def uses(cls, name: str, data: dict) -> bool:
        """Whether the nested section `name` is used by the model that `data` describes."""
        return True

    @classmethod
    def defaults(cls, given: dict) -> dict:
        """The published checkpoint's values of this section, for what `given` leaves out."""
        found = reduce(getitem, cls.section_path, published_content())
        return cls.normalise(dict(found), lambda key, message: None)

    @classmethod
    def recognise(cls, data: Mapping, source: str) -> None:
        """Raises ConfigError when `data` describes another model."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Relations between fields that do not hold, as (key, message)."""
        for key, other in self.links.items():
            value = attrgetter(other)(self)
            if attrgetter(key)(self) != value:
                yield self.mismatch(key, f"{other} = {value}")

    def mismatch(self, key: str, expected: str) -> tuple[str, str]:
        """A relation that does not hold for the field at the path `key`."""
        return key, f"got {shown(attrgetter(key)(self))}, expected {expected}"

    def ids_outside(self, ids: Iterable[str], size: str) -> Iterator[tuple[str, str]]:
        """The fields among `ids` that no row of a table of `size` (a field's path) belongs to."""
        rows = attrgetter(size)(self)
        return (self.mismatch(key, f"an id below {size} = {rows}") for key in ids if getattr(self, key) >= rows)

    # Reading

    @model_validator(mode="wrap")
    @classmethod
    def _from_json(cls, data: Any, validate: Callable[[Any], Self], info: ValidationInfo) -> Self:
        """An object out of a mapping or of what has `to_dict()`; pydantic calls this for each section too."""
        if isinstance(data, cls):  # an object already, or an assignment to one of its fields
            return validate(data)
        data, reading, problems = _as_dict(data), info.context or Reading(), []
        if not isinstance(data, Mapping):
            raise PydanticCustomError("unfit", "an object with keys and values")
        data = dict(data)
        attention = data.pop("attn_implementation", None)
        values = cls.normalise(cls._by_field_name(data), lambda key, message: problems.append((key, message)))
        wanted = [name for name in cls.sub_configs if cls.uses(name, values)]
        filled = not reading.strict and cls._fill(values, wanted)
        problems += [(name, "missing") for name in wanted if values.get(name) is None]
        values.update((name, None) for name in cls.sub_configs if name not in wanted)
        try:
            self = validate(values)
        except ValidationError as error:
            known = dict(problems)
            problems += [(item["loc"], _message(item)) for item in error.errors() if item["loc"][0] not in known]
            raise _validation_error(cls, problems) from None
        self._remember(data, filled)
        if attention is not None:
            self._attn_implementation = attention
        if reading.related and not problems:
            problems += self.check()
        if problems:
            raise _validation_error(cls, problems)
        return self

    def _remember(self, data: dict, filled: bool) -> None:
        """Keep the JSON; with what was filled in it is written in full, as its next reader may have other defaults."""
        parts = dict(self._sections())
        self._content = {key: None if key in parts else copy.deepcopy(_as_dict(value)) for key, value in data.items()}
        self._read = self._values()
        if filled:
            stored = {key: value for key, value in self._content.items() if key != "rope_parameters"}
            self._content = {**({"model_type": self.model_type} if self.model_type else {}), **stored, **self._read}

    @classmethod
    def _by_field_name(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`data` under the names of the fields; where it holds a field under both names, the own name counts."""
        names: dict[str, str] = {key: cls.attribute_map.get(key, key) for key in data}
        return {
            name if "." not in name else key: data[key] for key, name in names.items() if name == key or name not in data
        }

    @classmethod
    def _fill(cls, values: dict, wanted: list[str]) -> bool:
        """Published values for what is absent, or None though it may not be; whether there were any."""
        fields, defaults, missing = cls.model_fields, cls.defaults(values), []
        for name in fields.keys() & defaults.keys() - cls.sub_configs.keys():
            required = fields[name].is_required()
            if values.get(name) is None if required else fields[name].default is None and name not in values:
                missing.append(name)
        values.update((name, copy.deepcopy(defaults[name])) for name in missing)
        values.update((name, {}) for name in wanted if values.get(name) is None)
        for key, other in cls.links.items():
            section, field = key.split(".")
            value, content = reduce(_part, other.split("."), values), _as_dict(values.get(section))
            if value is not None and isinstance(content, Mapping) and content.get(field) is None:
                values[section] = {**content, field: value}
        return bool(missing)

    @classmethod
    def from_dict(
        cls,
        config_dict: Any,
        source: str = "the configuration",
        *,
        strict: bool = False,
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> Any:
        """Build from the content of a config.json, or from any object with `to_dict()` (as transformers' classes have).

        strict: a missing key is an error; by default it takes the published checkpoint's value. overrides: new values of
        fields, for a section a dict of those that change; others are left out with a warning, or come back beside the
        configuration with `return_unused_kwargs=True`.

        Raises ConfigError that lists every missing or invalid key with its path.
        """
        data = _as_dict(config_dict)
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source} is {shown(data)}, expected an object with keys and values.")
        cls.recognise(data, source)
        try:
            config = cls.model_validate(data, context=Reading(strict, related=not overrides))
        except ValidationError as error:
            raise _config_error(error, cls, f"{source} is") from None
        except RecursionError:
            raise ConfigError(f"{source} is nested too deep, expected a config.json of Qwen3-Omni.") from None
        unused = {key: overrides.pop(key) for key in list(overrides) if not hasattr(config, key)}
        if overrides:
            config.update(overrides)
            cls.validated(config, source)
        if return_unused_kwargs:
            return config, unused
        unknown = sorted(unused.keys() - load_arguments.KNOWN)
        if unknown:
            warn_once(f"{cls.__name__} has no {', '.join(unknown)}; left out")
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides: Any) -> Any:
        """Read config.json of a full checkpoint, or of this part of one: a folder, or a model's name on a hub.

        overrides: as `from_dict`; cache_dir, revision, subfolder and the like say where to look.

        Raises CheckpointError where there is no such folder or model, ConfigError for broken JSON, missing or invalid keys.
        """
        where = load_arguments.hub_options(overrides, cls.__name__)
        overrides = {key: value for key, value in overrides.items() if key not in load_arguments.HUB}
        data, path = read_config_json(pretrained_model_name_or_path, **where)
        source = str(path)
        for key in cls.section_path:
            if isinstance(data.get(key), Mapping):
                data, source = data[key], f"{source} ({key})"
        config = cls.from_dict(data, source, strict=True, **overrides)
        (config[0] if isinstance(config, tuple) else config).name_or_path = str(pretrained_model_name_or_path)
        return config

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """As `from_dict` for the content of a JSON file. Raises ConfigError."""
        return cls.from_dict(read_json_object(json_file), str(json_file))

    @classmethod
    def validated(cls, config: Any, source: str = "the configuration") -> Self:
        """`config` itself when a model can be built from it; a dict or another library's configuration is converted.

        Raises ConfigError that lists every value that does not fit, or does not fit another.
        """
        ours = isinstance(config, cls)
        read = cls.from_dict(config, source, strict=ours)
        return config if ours else read

    # Fields, their other names, and keys that are no fields

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            if name in type(self).attribute_map:
                return attrgetter(type(self).attribute_map[name])(self)
            private = object.__getattribute__(self, "__pydantic_private__") or {}
            for known in (private.get("_content", {}), GENERIC):
                if name in known:
                    return known[name]
        return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]  (pydantic hides its own)

    def __setattr__(self, name: str, value: Any) -> None:
        section, _, target = self.attribute_map.get(name, name).rpartition(".")
        if section:
            setattr(attrgetter(section)(self), target, value)
        elif target in type(self).model_fields:
            try:
                super().__setattr__(target, value)
            except ValidationError as error:
                raise _config_error(error, type(self), "the new value is") from None
            if target in self.sub_configs and value is None:
                self._content.pop(target, None)
        elif target.startswith("_") or hasattr(type(self), target):
            super().__setattr__(target, value)
        else:
            self._content[target] = value

    def __eq__(self, other: Any) -> bool:
        return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented

    # Writing

    def _values(self) -> dict:
        """The fields under the published checkpoint's keys; nested sections and what is None left out."""
        values = self.model_dump(exclude=set(self.sub_configs), exclude_none=True, warnings=False)
        return {**values, **{name: getattr(self, name) for name in self.attribute_map if name in self._content}}

    def _changes(self) -> dict:
        """What differs from the JSON that was read, by key."""
        now = self._values()
        return {key: now.get(key) for key in {**self._read, **now} if now.get(key) != self._read.get(key)}

    def to_dict(self) -> dict:
        """The JSON object: exactly what was read, or, where fields were set since, that with the new values."""
        content = copy.deepcopy(self._content) | self._changes()
        return content | {name: section.to_dict() for name, section in self._sections()}


def _as_dict(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") and not isinstance(value, Mapping) else value


def _part(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def _validation_error(kind: type, problems: list[tuple[str | tuple, str]]) -> ValidationError:
    """One error of pydantic's for problems at (key or path, message)."""
    errors = [(key if isinstance(key, tuple) else (key,), {"message": message}) for key, message in problems]
    lines: list[InitErrorDetails] = [
        {"type": PydanticCustomError("stated", "{message}", context), "loc": loc, "input": None} for loc, context in errors
    ]
    return ValidationError.from_exception_data(kind.__name__, lines)


def _message(item: Mapping) -> str:
    """What is wrong, of one of pydantic's errors."""
    if item["type"] == "stated":
        return item["msg"]
    if item["type"] == "missing":
        return "missing" + MISSING_HINTS.get(str(item["loc"][-1]), "")
    return f"got {shown(item['input'])}, expected {item['msg']}"


def _config_error(error: ValidationError, kind: type, source: str) -> ConfigError:
    problems = [f"{'.'.join(map(str, item['loc']))}: {_message(item)}" for item in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(f"{source} not a usable {kind.__name__}, {count}:\n  " + "\n  ".join(problems))

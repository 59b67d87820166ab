"""Rotary position settings in the forms that different versions of transformers write.

4.57 and the published files:  "rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "mrope_section": [...]}
5.x:                           "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [...]}
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ms_omni.errors import ConfigError

from . import fields
from .section import ConfigSection

PLAIN_TYPES = ("default", "mrope")  # "mrope" is the older name of the default type with sections


def normalise_rope(data: dict, report: Callable[[str, str], None], types: tuple[str, ...] = PLAIN_TYPES) -> dict:
    """Put `rope_theta` and `mrope_section` at the top of `data`, whichever form they came in.

    Rope types that rescale frequencies, partial rotation and sections that are not interleaved would change the model
    and are reported as unsupported.
    """
    for key in ("rope_parameters", "rope_scaling"):
        settings = data.get(key)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            report(key, f"got {fields.shown(settings)}, expected an object")
            continue
        _check_settings(key, settings, types, report)
        for name in ("rope_theta", "mrope_section"):
            if settings.get(name) is None:
                continue
            if data.get(name) is not None and data[name] != settings[name]:
                report(
                    name,
                    f"got {fields.shown(data[name])}, but {key} says {fields.shown(settings[name])}; expected one value",
                )
            data[name] = settings[name]
    return data


def _check_settings(key, settings, types, report):
    for name in ("rope_type", "type"):
        if settings.get(name, types[0]) not in (*types, None):
            report(
                f"{key}.{name}",
                f"got {fields.shown(settings[name])}, expected {fields.shown(types[0])} (no other type is supported)",
            )
    for name in ("interleaved", "mrope_interleaved"):
        if settings.get(name, True) is not True:
            report(f"{key}.{name}", f"got {fields.shown(settings[name])}, expected true (sections are always interleaved)")
    if settings.get("partial_rotary_factor", 1) not in (1, None):
        report(f"{key}.partial_rotary_factor", f"got {fields.shown(settings['partial_rotary_factor'])}, expected 1")


def interleaved_sections(head_dim: int) -> list[int]:
    """The sections that transformers falls back to, [24, 20, 20], cut off at the `head_dim / 2` pairs of a smaller head."""
    pairs = head_dim // 2
    height, width = (len(range(axis, min(3 * 20, pairs), 3)) for axis in (1, 2))
    return [pairs - height - width, height, width]


class RotarySection(ConfigSection):
    """A stack with rotary positions, whose settings have two other spellings."""

    rope_types: ClassVar[tuple[str, ...]] = PLAIN_TYPES

    rope_theta: fields.Positive

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """The settings where the fields stand, whichever form they came in."""
        return normalise_rope(data, report, cls.rope_types)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5.x writes them; a new dict each time, to be set as a whole."""
        return {"rope_theta": self.rope_theta, "rope_type": self.rope_types[0], **(self.rope_scaling or {})}

    @rope_parameters.setter
    def rope_parameters(self, settings: Mapping[str, Any] | None) -> None:
        """Raises ConfigError."""
        problems: list[str] = []
        data = self.normalise({"rope_parameters": settings}, lambda key, message: problems.append(f"{key}: {message}"))
        if problems:
            raise ConfigError(f"the new value is not usable in {type(self).__name__}:\n  " + "\n  ".join(problems))
        self.update({key: value for key, value in data.items() if key in type(self).model_fields})

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The sections of multimodal positions as 4.57 and the published files write them; None without."""
        sections = getattr(self, "mrope_section", None)
        if sections is None:
            return None
        kinds = {"rope_type": "default", "type": "default"}
        return {**kinds, "mrope_section": list(sections), "interleaved": True, "mrope_interleaved": True}

    @rope_scaling.setter
    def rope_scaling(self, settings: Mapping[str, Any] | None) -> None:
        self.rope_parameters = settings

    def _values(self) -> dict:
        """Rope goes back into the published spelling: rope_theta, and rope_scaling with the sections."""
        values = super()._values()
        if values.pop("mrope_section", None) is not None:
            values["rope_scaling"] = self.rope_scaling
        return values

    def _changes(self) -> dict:
        changes, written = super()._changes(), self._content.get("rope_parameters")
        if written is not None and changes.keys() & {"rope_theta", "rope_scaling"}:
            sections = changes.pop("rope_scaling", None) or {}  # stay in the one place where they stood
            changes["rope_parameters"] = {**written, **sections, "rope_theta": self.rope_theta}
        return changes

"""Rotary position settings in the forms that different versions of transformers write.

4.57 and the published files:  "rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "mrope_section": [...]}
5.x:                           "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [...]}
"""

from collections.abc import Callable, Mapping

from .fields import shown

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
            report(key, f"got {shown(settings)}, expected an object")
            continue
        _check_settings(key, settings, types, report)
        for name in ("rope_theta", "mrope_section"):
            if settings.get(name) is None:
                continue
            if data.get(name) is not None and data[name] != settings[name]:
                report(name, f"got {shown(data[name])}, but {key} says {shown(settings[name])}; expected one value")
            data[name] = settings[name]
    return data


def _check_settings(key, settings, types, report):
    for name in ("rope_type", "type"):
        if settings.get(name, types[0]) not in (*types, None):
            report(f"{key}.{name}", f"got {shown(settings[name])}, expected {shown(types[0])} (no other type is supported)")
    for name in ("interleaved", "mrope_interleaved"):
        if settings.get(name, True) is not True:
            report(f"{key}.{name}", f"got {shown(settings[name])}, expected true (sections are always interleaved)")
    if settings.get("partial_rotary_factor", 1) not in (1, None):
        report(f"{key}.partial_rotary_factor", f"got {shown(settings['partial_rotary_factor'])}, expected 1")


def check_mrope_section(section: tuple[int, ...] | None, head_dim: int) -> list[tuple[str, str]]:
    """Sections must be three and cover half of the head."""
    if section is not None and (len(section) != 3 or 2 * sum(section) != head_dim):
        return [
            (
                "mrope_section",
                f"got {list(section)}, expected three numbers that sum to head_dim / 2 = {head_dim / 2:g}",
            )
        ]
    return []

"""Voices by name. No MindSpore here: a command line asks before it starts anything."""

from ..errors import InputError

DEFAULT_SPEAKER = "Ethan"


def speaker_code(talker_config, speaker):
    """The codec id of a speaker's name, in any case. Raises `InputError` that lists the known names."""
    known = {name.lower(): code for name, code in talker_config.speaker_id.items()}
    if not isinstance(speaker, str) or speaker.lower() not in known:
        raise InputError(f"unknown speaker {speaker!r}; this checkpoint has {', '.join(sorted(known))}")
    return known[speaker.lower()]

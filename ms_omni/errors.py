"""Errors that a user can cause. Each message says what was got, what was expected and what to do."""


class OmniError(ValueError):
    """Base of every error that ms_omni raises for a mistake in the caller's input."""


class InputError(OmniError):
    """Arguments or model inputs that contradict each other or the model."""


class CacheFull(InputError):
    """An answer without a named limit that has filled the whole cache."""


class MediaError(OmniError):
    """A picture, sound or video that cannot be read, or that holds nothing to look at or listen to. where: its place, if it has one."""

    where = ""


class CheckpointError(OmniError):
    """A checkpoint folder that is missing, damaged or not of this model."""


class ConfigError(CheckpointError):
    """A config.json that lacks a needed key or holds a value that this model does not support."""


class DeviceError(OmniError):
    """What this device, or the software that drives it, cannot compute."""


class ProcessError(OmniError):
    """A process that did a part of the work, and is gone."""

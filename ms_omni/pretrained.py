"""What the public model classes share: loading and saving."""

from .errors import InputError
from .loading import LoadingMixin
from .runtime import require_mindspore

from .checkpoint import save_checkpoint  # isort: skip  (loading explains a missing MindSpore first)


class PretrainedMixin(LoadingMixin):
    """Loads and saves a cell whose parameters carry the checkpoint's names behind `checkpoint_prefix`."""

    def save_pretrained(self, folder, dtype=None):
        """Writes config.json and safetensors shards under the checkpoint's own names; dtype: default, as computed in."""
        if any(getattr(cell, "team", None) is not None for cell in (self, *self.cells())):
            raise InputError(
                "this process holds a part of the model only; save it from one process (parallel=None), or use "
                "ms-omni convert"
            )
        save_checkpoint(self, folder, self.config, dtype)

    @property
    def dtype(self):
        """MindSpore dtype of the weights."""
        return next(iter(self.get_parameters())).dtype

    @property
    def device(self):
        """Name of the device that MindSpore computes on: "CPU" or "Ascend"."""
        return require_mindspore().get_context("device_target")

"""`from_pretrained` and `save_pretrained`, shared by the public model classes."""

import functools
import inspect
import warnings

from .errors import InputError
from .runtime import require_mindspore, setup

require_mindspore()

from .checkpoint import load_checkpoint, load_rank_file, save_checkpoint  # noqa: E402  (needs MindSpore)
from .generation.defaults import GenerationConfig  # noqa: E402
from .modeling import ops  # noqa: E402
from .modeling.layers import lazy_parameters  # noqa: E402
from .parallel import watch  # noqa: E402
from .parallel.team import AUTO, choose, join  # noqa: E402

ATTENTION = (None, "eager", "sdpa", "flash_attention_2")


class PretrainedMixin:
    """Loads and saves a cell whose parameters carry the checkpoint's names behind `checkpoint_prefix`."""

    config_class = None
    checkpoint_prefix = ""
    team = None  # the ranks that hold the model together, see `ms_omni.parallel.Team`

    @classmethod
    def from_pretrained(
        cls,
        folder,
        *,
        mindspore_dtype=None,
        dtype=None,
        attn_implementation=None,
        progress=True,
        compile_steps=True,
        parallel=AUTO,
        split_heads=None,
        **config_changes,
    ):
        """Builds the model of a checkpoint folder and fills it tensor by tensor.

        folder: holds config.json and model.safetensors or shards with an index (bf16, fp16 or fp32), as published or
        as `ms-omni convert` wrote it; nothing is downloaded. mindspore_dtype (or dtype): dtype to compute in, default:
        the device's own (float32 on CPU, bfloat16 on Ascend). attn_implementation: "eager", "sdpa" or
        "flash_attention_2"; all mean the same numbers, the fused kernels are used where the device has them.
        compile_steps: turn the steps of generation into compiled graphs once they have run for a while; the numbers
        are the same either way. parallel: how the processes that msrun started share the model: "ep" (experts,
        attention heads and vocabulary split; the default, "auto", under msrun), "zero3" (everything split, gathered
        when used) or None (each process holds a model of its own, for `prepare_network` perhaps; the default in
        MindSpore's data-parallel mode). split_heads: for "ep", whether attention heads are split; by default where they
        divide. config_changes: `enable_audio_output=False` leaves talker and code2wav out.
        Raises `CheckpointError` with every problem found, before anything is allocated, and `InputError`.
        """
        known = inspect.signature(cls._read_config).parameters
        if not config_changes.keys() <= known.keys():
            unknown = ", ".join(sorted(config_changes.keys() - known.keys()))
            raise InputError(f"{cls.__name__}.from_pretrained has no argument {unknown}")
        check_attention(attn_implementation)
        with watch.busy():
            return cls._load(
                folder,
                mindspore_dtype if mindspore_dtype is not None else dtype,
                progress,
                compile_steps,
                parallel,
                split_heads,
                config_changes,
            )

    @classmethod
    def _load(cls, folder, dtype, progress, compile_steps, parallel, split_heads, config_changes):
        runtime = setup(dtype)
        options = {} if split_heads is None else {"split_heads": split_heads}
        parallel, options, rank_index = choose(folder, parallel, options)
        team = join(parallel, **options)
        read_config = functools.partial(cls._read_config, folder, **config_changes)
        if team is None:
            config = read_config()
        else:
            config = team.check(folder, (cls.__name__, runtime, compile_steps, config_changes), read_config)
        ops.settle(runtime.dtype)
        with lazy_parameters(runtime.dtype):
            model = cls(config)
        slices = team and team.place(model, config, cls.checkpoint_prefix)
        if rank_index is not None:
            load_rank_file(
                model, folder, rank_index, team.mesh.rank, slices, prefix=cls.checkpoint_prefix, dtype=runtime.dtype
            )
        else:
            load_checkpoint(
                model,
                folder,
                prefix=cls.checkpoint_prefix,
                dtype=runtime.dtype,
                slices=slices,
                progress=progress and (team is None or team.mesh.speaks),
            )
        if team is not None:
            team.attach(model)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        model.set_train(False)
        for cell in model.cells():
            _set_compile(cell, compile_steps)
        _set_compile(model, compile_steps)
        return model

    @classmethod
    def _read_config(cls, folder):
        return cls.config_class.from_pretrained(folder)

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


def _set_compile(cell, compile_steps):
    if not compile_steps and hasattr(cell, "steps"):
        cell.steps.compile_after = None


def check_attention(name):
    """Raises `InputError` for an unknown attention implementation; says so when a fused one is not to be had."""
    if name not in ATTENTION:
        raise InputError(f"attn_implementation is {name!r}, expected one of 'eager', 'sdpa', 'flash_attention_2'")
    device = require_mindspore().get_context("device_target")
    if name == "flash_attention_2" and device == "CPU":
        warnings.warn("CPU has no fused attention kernel; the reference operator computes the same numbers", stacklevel=3)

"""mindone's ZeRO-3: the one place that knows mindone, and only when a model is to be sharded.

What is used of it is `ZeroParamWrapper`, the cell that gathers a sharded parameter. `import mindone.trainers.zero` would
do, but brings all of mindone's models along: 3 s and 830 MB in each process, where a rank is to hold little more than
its share of the weights. The wrapper's file needs nothing but MindSpore, so it is loaded by itself.
"""

import importlib.util
from pathlib import Path

import mindspore as ms

from ..errors import InputError

WRAPPER_FILE = "models/modules/parallel/param_wrapper.py"
INSTALL = "Install it with: pip install 'mindone==0.5.0' 'ml_dtypes<0.6'"


def wrapper_class():
    """mindone's `ZeroParamWrapper`. Raises `InputError` with one line where mindone is missing or does not work."""
    try:
        spec = importlib.util.find_spec("mindone")
    except (ImportError, ValueError) as error:
        raise InputError(f"ZeRO-3 is mindone's, and looking for it failed: {error}. {INSTALL}") from None
    if spec is None:
        raise InputError(f"ZeRO-3 is mindone's, and mindone is not installed. {INSTALL}")
    folders = spec.submodule_search_locations or []
    files = [path for path in (Path(folder) / WRAPPER_FILE for folder in folders) if path.is_file()]
    if not files:
        raise InputError(f"ZeRO-3 is mindone's, and the installed mindone has no {WRAPPER_FILE}. {INSTALL}")
    return _load(files[0])


def _load(file):
    spec = importlib.util.spec_from_file_location("ms_omni_mindone_param_wrapper", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.ZeroParamWrapper
    except Exception as error:  # whatever a version that is not meant for this MindSpore raises
        raise InputError(
            f"ZeRO-3 is mindone's, and loading {file} failed: {type(error).__name__}: {error}. {INSTALL}"
        ) from None


def gatherer(dtype, group, size):
    """A cell of mindone's that turns the parts `[n, ...]` of a group's `size` ranks into the whole `[size * n, ...]`.

    The wrapper looks at a parameter for its dtype and for whether its first axis divides, and keeps nothing of it; our
    parts always divide, so one cell serves all of them.
    """
    wrapper = wrapper_class()
    with _data_parallel():
        witness = ms.Parameter(ms.Tensor([0] * size, dtype), name="parts")
        cell = wrapper(witness, zero_stage=3, optimizer_parallel_group=group)
    if not cell.need_rewrite:
        raise InputError(f"mindone's ZeroParamWrapper refuses to gather over the group {group!r}. {INSTALL}")
    return cell


def rewrite(network, group, parallel_modules, special_cases):
    """mindone's own `prepare_network`, for cells of the classes that the caller names. Imports all of mindone."""
    try:
        from mindone.trainers.zero import prepare_network
    except Exception as error:  # it imports half a world
        raise InputError(
            f"parallel_modules are for mindone, and importing it failed: {type(error).__name__}: {error}. {INSTALL}"
        ) from None
    with _data_parallel():
        return prepare_network(network, 3, group, parallel_modules or {}, special_cases or {})


class _data_parallel:
    """mindone gathers in MindSpore's data-parallel mode only; whatever mode the caller had comes back."""

    def __enter__(self):
        self.before = ms.get_auto_parallel_context("parallel_mode")
        ms.set_auto_parallel_context(parallel_mode="data_parallel")

    def __exit__(self, *_):
        ms.set_auto_parallel_context(parallel_mode=self.before)

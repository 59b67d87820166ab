"""MindSpore itself: does it start, on which device, does it compute."""

from importlib import metadata

import numpy as np

from . import ascend
from .finding import error, ok, one_line


def import_and_compute(options):
    """Findings on an import, the device that MindSpore took, and one sum."""
    try:
        import mindspore
    except Exception as reason:  # anything from ImportError to errors of the dynamic linker
        yield error(f"MindSpore cannot be imported: {type(reason).__name__}: {one_line(reason)}", _advice(str(reason)))
        return
    device = mindspore.get_context("device_target")
    found, where = getattr(mindspore, "__version__", "without a version"), getattr(mindspore, "__file__", None)
    installed = metadata.version("mindspore")
    if found != installed:
        yield error(
            f"the MindSpore that is imported is {found} ({where}), the installed one {installed}",
            "remove that folder from PYTHONPATH or from the current folder",
        )
        return
    if device == "CPU" and ascend.device_files():
        yield error(
            "MindSpore computes on CPU although there is an NPU: it could not load its Ascend library",
            "source CANN's set_env.sh and import mindspore again; its warnings name the library that is missing",
        )
    one = mindspore.Tensor(np.ones(4, np.float32))
    if not np.array_equal((one + one).asnumpy(), np.full(4, 2, np.float32)):
        yield error(f"MindSpore {found} computes 1 + 1 wrongly on {device}", "reinstall mindspore and CANN")
        return
    yield ok(f"MindSpore {found} computes on {device}")


def _advice(reason):
    if "numpy" in reason.lower() or "_ARRAY_API" in reason:
        return "pip install 'numpy<2'"
    return "pip install --force-reinstall mindspore==2.7.1"

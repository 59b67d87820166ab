"""The kernels of `ascend_kernels` in numpy, for machines without an NPU: `MS_OMNI_OPS=ascend-emulated`.

Each function has the signature of its namesake and computes what the documentation says that kernel computes; it refuses
everything that the documentation excludes (types, shapes, alignment, ranges of values). So the whole model can run along
the path it takes on Ascend, in graphs too. float32 stands in for bfloat16, which no kernel on CPU computes with.

What runs is an `ops.Custom` primitive around a numpy function; shapes and types are checked when they are inferred,
values when the function runs.
"""

from . import ascend_kernels, emulated_attention, emulated_dense, emulated_moe
from .emulation_rules import FLOATS
from .reference import Reference

KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (emulated_attention, ("fused_infer_attention", "varlen_attention")),
        (emulated_dense, ("rms_norm", "layer_norm", "gelu", "swiglu", "rotary_position_embedding", "dense", "conv2d")),
        (emulated_moe, ("topk", "moe_init_routing", "grouped_matmul", "moe_token_unpermute")),
    )
    for name in names
}
KERNELS["index_copy"] = Reference.write_rows  # numpy gets copies, so what writes in place is the kernel of CPU


def install():
    """Puts these functions in place of the kernels, for the rest of the process."""
    for name, function in KERNELS.items():
        setattr(ascend_kernels, name, function)
    ascend_kernels.ATTENTION_TYPES = FLOATS

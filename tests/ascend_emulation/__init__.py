"""Kernels of Ascend in numpy, in the place of MindSpore's primitives: `MS_OMNI_OPS=ascend-emulated`, for machines without an
NPU.

Every stand-in computes what the documentation says that its kernel computes and refuses what the documentation excludes
(types, shapes, alignment, ranges of values); its results have the number, the shapes and the types that MindSpore
infers. So all of `ms_omni.modeling.ops.ascend` runs as it is written, and so do MindSpore's own functions around the
primitives. Graphs compute in float32, which stands for bfloat16 there; outside them bfloat16 is computed as well (see
`bfloat16.py`).
"""

import inspect
import sys
from collections.abc import Callable

from mindspore.ops import functional_overload
from mindspore.ops.auto_generate import gen_ops_prim, pyboost_inner_prim
from mindspore.ops.operations.manually_defined import ops_def

from . import attention, codes, dense, moe, rows
from .kernel import FLOATS
from .primitives import stand_in

KERNELS = {
    "FusedInferAttentionScore": attention.fused_infer_attention_score,
    "FlashAttentionScore": attention.flash_attention_score,
    "PagedAttention": attention.paged_attention,
    "RmsNorm": dense.rms_norm,
    "AddRmsNorm": dense.add_rms_norm,
    "LayerNormExt": dense.layer_norm_ext,
    "AddLayerNormV2": dense.add_layer_norm_v2,
    "GeluExt": dense.gelu_ext,
    "Swiglu": dense.swiglu,
    "RotaryPositionEmbedding": dense.rotary_position_embedding,
    "ApplyRotaryPosEmb": dense.apply_rotary_pos_emb,
    "Dense": dense.dense,
    "Addmm": dense.addmm,
    "Baddbmm": dense.baddbmm,
    "AddcmulExt": dense.addcmul_ext,
    "AddcdivExt": dense.addcdiv_ext,
    "Conv2DExt": dense.conv2d_ext,
    "TopkExt": moe.topk_ext,
    "MoeInitRoutingV2": moe.moe_init_routing_v2,
    "WeightQuantBatchMatmul": codes.weight_quant_batch_matmul,
    "GroupedMatmulV4": moe.grouped_matmul_v4,
    "MoeTokenUnpermute": moe.moe_token_unpermute,
    "IndexSelect": rows.index_select,
    "Embedding": rows.embedding,
    "ArgMaxExt": rows.arg_max_ext,
    "CumsumExt": rows.cumsum_ext,
    "IndexAddExt": rows.index_add_ext,
    "SplitWithSize": rows.split_with_size,
    "ConstantPadND": rows.constant_pad_nd,
    "Clone": rows.clone,
}
"""Primitive -> what makes its `Kernel` (see `stand_in`)."""
STAND_INS = {name: stand_in(getattr(gen_ops_prim, name), make) for name, make in KERNELS.items()}
STAND_INS.update(InplaceIndexCopy=rows.inplace_index_copy, ReshapeAndCache=rows.reshape_and_cache, Arange=rows.arange)
"""Primitive -> what replaces its class."""


def _rms_norm(x, gamma, epsilon):
    return STAND_INS["RmsNorm"](epsilon)(x, gamma)


def _uncached(primitive):
    """Makes what MindSpore's functions ask its cache of primitives for, which can make nothing but primitives."""
    return primitive


FUNCTIONS = {
    id(pyboost_inner_prim.rms_norm_impl): _rms_norm,
    id(functional_overload.gelu): STAND_INS["GeluExt"](),
    id(functional_overload.conv2d): STAND_INS["Conv2DExt"](),
}
"""What reaches kernels otherwise than through the class of a primitive."""


def install() -> Callable[[], None]:
    """Exchanges the primitives wherever MindSpore and the operators hold them, for the process; returns what undoes it.

    None of them has a kernel on CPU, so nothing that works without this changes.
    """
    makers = {id(getattr(gen_ops_prim, name)): make for name, make in STAND_INS.items()}
    from ms_omni.modeling.ops import ascend_kernels

    exchanged = [
        (ops_def, "_get_cache_prim", ops_def._get_cache_prim, _uncached),
        (ascend_kernels, "ATTENTION_TYPES", ascend_kernels.ATTENTION_TYPES, FLOATS),  # float32 stands for half precision
    ]
    for owner in _namespaces():
        for name, value in list(vars(owner).items()):
            if id(type(value)) in makers:
                replacement = makers[id(type(value))](*_settings(value))
            else:
                replacement = makers.get(id(value), FUNCTIONS.get(id(value)))
            if replacement is not None:
                exchanged.append((owner, name, value, replacement))
    for owner, name, _, replacement in exchanged:
        setattr(owner, name, replacement)

    def undo():
        for owner, name, original, _ in exchanged:
            setattr(owner, name, original)

    return undo


def _settings(primitive):
    """The values that a primitive was made with."""
    return [getattr(primitive, name) for name in inspect.signature(type(primitive).__init__).parameters if name != "self"]


def _namespaces():
    """Modules of MindSpore, those of the operators, and the operators' classes."""
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] == "mindspore":
            yield module
        if name.startswith("ms_omni.modeling.ops."):
            yield module
            yield from (item for item in vars(module).values() if isinstance(item, type) and item.__module__ == name)

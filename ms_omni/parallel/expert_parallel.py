"""The plan "ep" for the thinker: experts over all ranks, attention heads and the vocabulary head too.

Every rank sees all tokens and adds up its part of each block; one all-reduce per attention and one per mixture of experts
complete the sum. Encoders, embedding, norms, router, dense layers and everything that speaks are on every rank.
"""

from ..errors import InputError
from .plan import ONCE, REPLICATE, Plan, Row, split

LAYER = r"thinker\.model\.layers\.<n>\."


def make_plan(config, shapes, size, split_heads=None):
    """The `Plan` of a configuration (of the whole model or of a part) for `size` ranks; shapes are not needed.

    split_heads: None splits attention heads where their numbers divide, True insists, False keeps attention whole.
    Raises `InputError` for a model that `size` ranks cannot share.
    """
    thinker = getattr(config, "thinker_config", config)
    if not hasattr(thinker, "audio_config"):
        return Plan("ep", (Row(r"(talker|code2wav)\..+", REPLICATE),))
    text = thinker.text_config
    _check(text, size)
    rows = [
        Row(r"thinker\.(audio_tower|visual)\..+", REPLICATE),
        Row(r"thinker\.model\.(embed_tokens|norm)\.weight", REPLICATE),
        Row(LAYER + r"(input|post_attention)_layernorm\.weight", REPLICATE),
        *_attention_rows(text, size, split_heads),
        *_mlp_rows(text),
    ]
    if not text.tie_word_embeddings:
        rows.append(Row(r"thinker\.lm_head\.weight", split(0)))
    if getattr(config, "enable_audio_output", False):
        rows.append(Row(r"(talker|code2wav)\..+", REPLICATE))
    return Plan("ep", tuple(rows))


def splits_heads(text, size, wanted=None):
    """Whether the attention heads of a text configuration are split over `size` ranks; wanted: see `make_plan`."""
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    divides = heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
    if wanted and not divides:
        raise InputError(
            f"{heads} attention heads with {kv_heads} kv heads cannot be split over {size} ranks; leave "
            "split_heads to the model, or set it to False"
        )
    return divides and wanted is not False


def _check(text, size):
    sparse = any(text.is_sparse_layer(layer) for layer in range(text.num_hidden_layers))
    if sparse and text.num_experts < size:
        raise InputError(f"{text.num_experts} experts cannot be shared by {size} ranks; start at most {text.num_experts}")
    if text.vocab_size < size:
        raise InputError(f"a vocabulary of {text.vocab_size} cannot be shared by {size} ranks")


def _attention_rows(text, size, split_heads):
    heads = kv = across = output_bias = REPLICATE
    if splits_heads(text, size, split_heads):
        width, copies = text.head_dim, max(size // text.num_key_value_heads, 1)
        heads, kv, across, output_bias = split(0, width), split(0, width, copies), split(1, width), ONCE
    rows = [
        Row(LAYER + r"self_attn\.q_proj\.weight", heads),
        Row(LAYER + r"self_attn\.[kv]_proj\.weight", kv),
        Row(LAYER + r"self_attn\.o_proj\.weight", across),
        Row(LAYER + r"self_attn\.[qk]_norm\.weight", REPLICATE),
    ]
    if text.attention_bias:
        rows += [
            Row(LAYER + r"self_attn\.q_proj\.bias", heads),
            Row(LAYER + r"self_attn\.[kv]_proj\.bias", kv),
            Row(LAYER + r"self_attn\.o_proj\.bias", output_bias),
        ]
    return rows


def _mlp_rows(text):
    kinds = {text.is_sparse_layer(layer) for layer in range(text.num_hidden_layers)}
    rows = []
    if True in kinds:
        rows += [Row(LAYER + r"mlp\.gate\.weight", REPLICATE), Row(LAYER + r"mlp\.experts\.(gate_up|down)", split(0))]
    if False in kinds:
        rows.append(Row(LAYER + r"mlp\.(gate|up|down)_proj\.weight", REPLICATE))
    return rows


def attach(model, slices, comm):
    """Puts the collectives of this plan into a loaded model; see `layers.py`."""
    from .layers import split_thinker  # needs MindSpore; the table does not

    return split_thinker(model, slices, comm)

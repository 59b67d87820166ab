"""The parameters of a model by name and shape, from its configuration alone: no MindSpore, nothing is built.

What `ms-omni plan` counts, in the time that reading a file takes. The cells say the same (tests/checkpoint/test_shapes.py).
"""

from typing import Any

Shapes = dict[str, tuple[int, ...]]

SNAKE = ("alpha", "beta")
KERNEL = 7  # of the vocoder's causal convolutions, whatever the configuration
WINDOW = 3  # of the audio encoder's convolutions


def parameter_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """`{full name: shape}` of the parameters of a whole model's configuration, experts stacked (see `names.py`)."""
    shapes = {f"thinker.{name}": shape for name, shape in _thinker(config.thinker_config).items()}
    if config.enable_audio_output:
        shapes |= {f"talker.{name}": shape for name, shape in _talker(config.talker_config).items()}
        shapes |= {f"code2wav.{name}": shape for name, shape in _code2wav(config.code2wav_config).items()}
    return shapes


def component_shapes(config: Any, prefix: str) -> dict[str, tuple[int, ...]]:
    """As `parameter_shapes`, of the component `prefix` ("thinker.", ...) by its own names; "" is the whole model."""
    table = {"": parameter_shapes, "thinker.": _thinker, "talker.": _talker, "code2wav.": _code2wav}
    return table[prefix](config)


def _linear(name, outputs, inputs, bias=True):
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _convolution(name, shape, outputs):
    return {f"{name}.weight": shape, f"{name}.bias": (outputs,)}


def _attention(name, c, head_norms):
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes = {}
    for part, outputs, inputs in (
        ("q", queries, c.hidden_size),
        ("k", keys, c.hidden_size),
        ("v", keys, c.hidden_size),
        ("o", c.hidden_size, queries),
    ):
        shapes |= _linear(f"{name}.{part}_proj", outputs, inputs, c.attention_bias)
    if head_norms:
        shapes |= {f"{name}.q_norm.weight": (c.head_dim,), f"{name}.k_norm.weight": (c.head_dim,)}
    return shapes


def _dense(name, width, inner):
    return {
        f"{name}.gate_proj.weight": (inner, width),
        f"{name}.up_proj.weight": (inner, width),
        f"{name}.down_proj.weight": (width, inner),
    }


def _experts(name, c):
    shapes = {
        f"{name}.gate.weight": (c.num_experts, c.hidden_size),
        f"{name}.experts.gate_up": (c.num_experts, c.hidden_size, 2 * c.moe_intermediate_size),
        f"{name}.experts.down": (c.num_experts, c.moe_intermediate_size, c.hidden_size),
    }
    if hasattr(c, "shared_expert_intermediate_size"):
        shapes |= _dense(f"{name}.shared_expert", c.hidden_size, c.shared_expert_intermediate_size)
        shapes[f"{name}.shared_expert_gate.weight"] = (1, c.hidden_size)
    return shapes


def _decoder(name, c, head_norms=True) -> Shapes:
    shapes: Shapes = {f"{name}.norm.weight": (c.hidden_size,)}
    for number in range(c.num_hidden_layers):
        layer = f"{name}.layers.{number}"
        shapes |= {f"{layer}.{norm}_layernorm.weight": (c.hidden_size,) for norm in ("input", "post_attention")}
        shapes |= _attention(f"{layer}.self_attn", c, head_norms)
        if hasattr(c, "num_experts") and c.is_sparse_layer(number):
            shapes |= _experts(f"{layer}.mlp", c)
        else:
            shapes |= _dense(f"{layer}.mlp", c.hidden_size, c.intermediate_size)
    return shapes


def _thinker(c):
    text = c.text_config
    shapes = {"model.embed_tokens.weight": (text.vocab_size, text.hidden_size), **_decoder("model", text)}
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes | _audio_encoder("audio_tower", c.audio_config) | _vision_encoder("visual", c.vision_config)


def _audio_encoder(name, c):
    channels, width, bins, shapes = c.downsample_hidden_size, c.d_model, c.num_mel_bins, {}
    for number in (1, 2, 3):  # each halves the mel bins, rounded up
        inputs, bins = 1 if number == 1 else channels, (bins + 1) // 2
        shapes |= _convolution(f"{name}.conv2d{number}", (channels, inputs, WINDOW, WINDOW), channels)
    shapes |= _linear(f"{name}.conv_out", width, channels * bins, bias=False)
    for number in range(c.encoder_layers):
        layer = f"{name}.layers.{number}"
        for part in ("q", "k", "v", "out"):
            shapes |= _linear(f"{layer}.self_attn.{part}_proj", width, width)
        shapes |= _norm(f"{layer}.self_attn_layer_norm", width) | _norm(f"{layer}.final_layer_norm", width)
        shapes |= _linear(f"{layer}.fc1", c.encoder_ffn_dim, width) | _linear(f"{layer}.fc2", width, c.encoder_ffn_dim)
    shapes |= _norm(f"{name}.ln_post", width)
    return shapes | _linear(f"{name}.proj1", width, width) | _linear(f"{name}.proj2", c.output_dim, width)


def _vision_encoder(name, c):
    width, patch = c.hidden_size, c.in_channels * c.temporal_patch_size * c.patch_size**2
    shapes = _linear(f"{name}.patch_embed.proj", width, patch)
    shapes[f"{name}.pos_embed.weight"] = (c.num_position_embeddings, width)
    for number in range(c.depth):
        block = f"{name}.blocks.{number}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.linear_fc1", c.intermediate_size, width)
        shapes |= _linear(f"{block}.mlp.linear_fc2", width, c.intermediate_size)
    merged = width * c.spatial_merge_size**2
    for merger, norm in (
        ("merger", width),
        *((f"merger_list.{number}", merged) for number in range(len(c.deepstack_visual_indexes))),
    ):
        shapes |= _norm(f"{name}.{merger}.ln_q", norm) | _linear(f"{name}.{merger}.mlp.0", merged, merged)
        shapes |= _linear(f"{name}.{merger}.mlp.2", c.out_hidden_size, merged)
    return shapes


def _talker(c):
    text, predictor, hidden = c.text_config, c.code_predictor_config, c.thinker_hidden_size
    shapes = {"model.codec_embedding.weight": (text.vocab_size, text.hidden_size), **_decoder("model", text)}
    for projection in ("text_projection", "hidden_projection"):
        shapes |= _linear(f"{projection}.linear_fc1", text.intermediate_size, hidden)
        shapes |= _linear(f"{projection}.linear_fc2", text.hidden_size, text.intermediate_size)
    shapes["codec_head.weight"] = (text.vocab_size, text.hidden_size)
    shapes |= _decoder("code_predictor.model", predictor)
    for group in range(predictor.num_code_groups - 1):
        for table in ("model.codec_embedding", "lm_head"):
            shapes[f"code_predictor.{table}.{group}.weight"] = (predictor.vocab_size, predictor.hidden_size)
    return shapes


def _code2wav(c):
    width, shapes = c.hidden_size, _decoder("pre_transformer", c, head_norms=False)
    for number in range(c.num_hidden_layers):
        for part in ("self_attn", "mlp"):
            shapes[f"pre_transformer.layers.{number}.{part}_layer_scale.scale"] = (width,)
    shapes["code_embedding.weight"] = (c.codebook_size * c.num_quantizers, width)
    for number, factor in enumerate(c.upsampling_ratios):
        shapes |= _convolution(f"upsample.{number}.0.conv", (width, width, factor), width)
        block = f"upsample.{number}.1"
        shapes |= _convolution(f"{block}.dwconv.conv", (width, 1, KERNEL), width) | _norm(f"{block}.norm", width)
        shapes |= _linear(f"{block}.pwconv1", 4 * width, width) | _linear(f"{block}.pwconv2", width, 4 * width)
        shapes[f"{block}.gamma"] = (width,)
    shapes |= _convolution("decoder.0.conv", (c.decoder_dim, width, KERNEL), c.decoder_dim)
    channels = c.decoder_dim
    for number, rate in enumerate(c.upsample_rates, 1):
        shapes |= _vocoder_block(f"decoder.{number}.block", channels, rate)
        channels //= 2
    last = len(c.upsample_rates) + 1
    shapes |= {f"decoder.{last}.{name}": (channels,) for name in SNAKE}
    return shapes | _convolution(f"decoder.{last + 1}.conv", (1, channels, KERNEL), 1)


def _vocoder_block(name, channels, rate):
    half = channels // 2
    shapes: Shapes = {f"{name}.0.{part}": (channels,) for part in SNAKE}
    shapes |= _convolution(f"{name}.1.conv", (channels, half, 2 * rate), half)
    for unit in (2, 3, 4):
        shapes |= {f"{name}.{unit}.{act}.{part}": (half,) for act in ("act1", "act2") for part in SNAKE}
        for number, kernel in ((1, KERNEL), (2, 1)):
            shapes |= _convolution(f"{name}.{unit}.conv{number}.conv", (half, half, kernel), half)
    return shapes

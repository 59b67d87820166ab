"""The parts of the model that are run dry, in the published geometry and bfloat16. Needs the Ascend backend (see `stub.py`)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker
from ms_omni.checkpoint.parameters import piece_of
from ms_omni.checkpoint.storage import storage_of
from ms_omni.config import load_named_config
from ms_omni.engine.choice import KINDS, Chooser
from ms_omni.engine.kv_pool import KVPool, PoolStep
from ms_omni.generation.sampling import RowSampler, SamplingParams
from ms_omni.modeling import BLOCK_TOKENS
from ms_omni.modeling.audio_encoder import AudioEncoder
from ms_omni.modeling.code2wav import CHUNK_FRAMES, Code2Wav
from ms_omni.modeling.layer import exchange, lazy_parameters
from ms_omni.modeling.ops.ascend_weights import array_type
from ms_omni.modeling.prefill import CHUNK_TOKENS
from ms_omni.modeling.steps import FrameStep
from ms_omni.modeling.talker import Talker
from ms_omni.modeling.vision_encoder import VisionEncoder
from ms_omni.parallel.group import ProcessGroup
from ms_omni.quantised import Storage

from .kernel_log import KernelLog, Launches

CONTEXT = 2 * CHUNK_TOKENS
BLOCKS = CONTEXT // BLOCK_TOKENS
ROWS = 16
PICTURE = (1, 28, 42)  # frames, rows and columns of patches
AUDIO_FRAMES = 1050  # ten and a half chunks: two windows, one of them not full


@dataclass(frozen=True)
class Counted:
    """launches: of everything; per_layer: of one layer of each stack that there is, by its name."""

    launches: Launches
    per_layer: dict[str, Launches]


PACKED = re.compile(
    r"(^|\.)(model\.layers\.\d+\.(self_attn\.[qkv]_proj|mlp\.(shared_expert\.)?(gate|up)_proj)"
    r"|visual\.blocks\.\d+\.attn\.(qkv|proj)|audio_tower\.layers\.\d+\.self_attn\.(q|k|v|out)_proj)\.weight$"
)
"""Names of what weights are packed of."""


BITS = {"int8": 8, "int4": 4}
GROUP = 128


def stored_in(bits: int | None, name: str, shape: tuple[int, ...]) -> Storage | None:
    """How a parameter of the published model is stored."""
    return None if bits is None else storage_of(name, shape, bits, GROUP)


def build(
    kind: Callable[..., Any], config: Any, group: ProcessGroup | None = None, prefix: str = "", bits: int | None = None
) -> Any:
    """A cell with parameters of zeros on the device, where a dry run has any amount of memory and the host needs none; what is packed
    before it is used is on the host, as all is of a model that is loaded.

    group: whose part of the parameters it holds; prefix: of the parameters' names in a whole model; bits: of what is stored as codes.
    """
    with lazy_parameters(ms.bfloat16):
        cell = kind(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in cell.parameters_and_names()}
    slices = group.make_slices(cell, config, prefix) if group else {}
    coded = {name: found for name, shape in shapes.items() if (found := stored_in(bits, prefix + name, shape))}
    exchange(cell, coded)
    for name, parameter in cell.parameters_and_names():
        part, of = slices.get(prefix + name), name.removesuffix("_scale")
        shape = parameter.shape if part is None else part.local_shape
        if of in coded:
            piece = piece_of(of, shapes[of], coded[of], slices.get(prefix + of))
            shape = piece.shapes()[int(of != name)]
        if PACKED.search(prefix + name) or of in coded:
            data = Tensor.from_numpy(np.zeros(shape, array_type(parameter.dtype)))
        else:
            data = mint.zeros(shape, dtype=parameter.dtype)
        parameter.set_data(data, slice_shape=group is not None)
    if group:
        group.attach(cell)
    cell.set_train(False)
    return cell


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32)).astype(ms.bfloat16)


def every_layer(layers: int, count: Callable[[int], Launches]) -> tuple[Launches, Launches]:
    """(launches of all layers, launches of one), from `count(number of layers)` with three and with two."""
    three = count(3)
    one = three - count(2)
    return three + one.times(layers - 3), one


def _thinker_of(layers: int, group: ProcessGroup | None, bits: int | None = None) -> Thinker:
    """The thinker with few layers and next to no encoders."""
    config = load_named_config("published").thinker_config
    config = config.copy(
        text_config=config.text_config.copy(num_hidden_layers=layers),
        vision_config=config.vision_config.copy(depth=1, deepstack_visual_indexes=[0]),
        audio_config=config.audio_config.copy(encoder_layers=1),
    )
    return build(Thinker, config, group, "thinker.", bits)


def _talker_of(layers: int, bits: int | None = None) -> Talker:
    config = load_named_config("published").talker_config
    config = config.copy(text_config=config.text_config.copy(num_hidden_layers=layers))
    return build(Talker, config, prefix="talker.", bits=bits)


def thinker(log: KernelLog, group: ProcessGroup | None, bits: int | None) -> Counted:
    """One step of decoding: one token through the decoder and its output layer, as a graph where the plan allows one."""
    layers = load_named_config("published").thinker_config.text_config.num_hidden_layers
    launches, layer = every_layer(layers, lambda layers: _step(log, _thinker_of(layers, group, bits)))
    return Counted(launches, {"thinker": layer})


def talker(log: KernelLog, bits: int | None) -> Counted:
    """As `thinker`, for the decoder that speaks; of several rows, which take no more launches than one."""
    layers = load_named_config("published").talker_config.text_config.num_hidden_layers
    launches, layer = every_layer(layers, lambda layers: _step(log, _talker_of(layers, bits), ROWS))
    return Counted(launches, {"talker": layer})


def _step(log: KernelLog, model: Thinker | Talker, rows: int = 1) -> Launches:
    decoder = model.model
    step = PoolStep(decoder, model.output_layer, KVPool.of(decoder, 1 + BLOCKS), compile_after=0)
    rope, lengths = decoder.rope(np.zeros((3, rows, 1), np.float32)), np.full(rows, CONTEXT, np.int32)
    tables = step.pool.tables([range(1, 1 + BLOCKS)] * rows, lengths)
    inputs = zeros(rows, 1, decoder.config.hidden_size), rope, tables, lengths
    log.skip()
    step.warm(rows)
    built = log.built()
    step(*inputs)
    return built if step.most == rows else log.launched()


def prefill(log: KernelLog, group: ProcessGroup | None, bits: int | None) -> Counted:
    """A chunk of a prompt that follows another, operator by operator."""
    text = load_named_config("published").thinker_config.text_config

    def count(layers):
        decoder = _thinker_of(layers, group, bits).model
        pool, x = KVPool.of(decoder, 1 + BLOCKS), zeros(1, CHUNK_TOKENS, text.hidden_size)
        positions = np.broadcast_to(np.arange(CHUNK_TOKENS, dtype=np.float32), (3, 1, CHUNK_TOKENS))
        for start in (0, CHUNK_TOKENS):
            log.skip()
            pool.read_chunk(decoder, x, decoder.rope(positions + start), start, CHUNK_TOKENS, range(1, 1 + BLOCKS))
        return log.launched()

    launches, layer = every_layer(text.num_hidden_layers, count)
    return Counted(launches, {"thinker": layer})


def frame(log: KernelLog, bits: int | None) -> Counted:
    """The codes of a frame for several rows, each sampled in its own way, as a graph."""
    step = FrameStep(_talker_of(1, bits), ROWS, None)
    log.skip()
    step.warm(ROWS)
    return Counted(log.built(), {})


def sampler(log: KernelLog, bits: int | None) -> Counted:
    """The choice of an id for sixteen rows, the thinker's, sampled and with penalties, and the new penalties of a token; and its kinds."""
    size = load_named_config("published").thinker_config.text_config.vocab_size
    chooser = Chooser(SimpleNamespace(size=size, dtype=ms.bfloat16), ROWS)
    params = SamplingParams(
        do_sample=True, top_k=50, top_p=0.9, temperature=0.7, repetition_penalty=1.1, presence_penalty=0.5
    )
    samplers = [RowSampler(params, np.random.default_rng(0), range(9)) for _ in range(ROWS)]
    found = {}
    for penalised, drawn in KINDS:
        log.skip()
        chooser.warm([ROWS], [(penalised, drawn)])
        found["sampled" if drawn else "greedy", penalised] = log.built()
    chooser.planes.slots(samplers)
    for row in samplers:
        row.note(9)
    log.skip()
    chooser.planes.slots(samplers)
    update = log.launched()
    kinds = {f"{name}{' with penalties' if penalised else ''}": kind for (name, penalised), kind in found.items()}
    return Counted(found["sampled", True] + update, {**kinds, "new penalties": update})


def vocoder(log: KernelLog, bits: int | None) -> Counted:
    """A chunk of frames to sound, operator by operator, behind another one."""
    config = load_named_config("published").code2wav_config
    stream = build(Code2Wav, config).stream()
    codes = np.zeros((1, config.num_quantizers, CHUNK_FRAMES), np.int32)
    stream.step(codes)
    log.skip()
    stream.step(codes)
    return Counted(log.launched(), {})


def encoders(log: KernelLog, bits: int | None) -> Counted:
    """A picture and a sound, operator by operator."""
    config = load_named_config("published").thinker_config
    vision, audio = config.vision_config, config.audio_config

    def see(layers):
        model = build(VisionEncoder, vision.copy(depth=layers, deepstack_visual_indexes=[0, 1]))
        pixels = Tensor(np.zeros((np.prod(PICTURE), model.patch_embed.width), np.float32))
        log.skip()
        model(pixels, np.array([PICTURE]))
        return log.launched()

    def hear(layers):
        model = build(AudioEncoder, audio.copy(encoder_layers=layers))
        sound = np.zeros((audio.num_mel_bins, AUDIO_FRAMES), np.float32)
        log.skip()
        model(sound, np.array([AUDIO_FRAMES]))
        return log.launched()

    seen, block = every_layer(vision.depth, see)
    heard, layer = every_layer(audio.encoder_layers, hear)
    return Counted(seen + heard, {"vision": block, "audio": layer})


PARTS = {part.__name__: part for part in (talker, frame, sampler, vocoder, encoders)}
SPREAD = {part.__name__: part for part in (thinker, prefill)}
"""Those that a plan spreads over ranks; it leaves the others whole ("ep"), or they are spread in the same way ("zero3")."""

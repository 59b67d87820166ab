"""Whole layers in one launch, of encoders and of decoders that read a prompt: bit for bit what the cells make with the operators one by one."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.engine.kv_pool import KVPool
from ms_omni.errors import InputError
from ms_omni.modeling import ops
from ms_omni.modeling.audio_encoder import AudioEncoder, AudioEncoderLayer
from ms_omni.modeling.layer import has_hooks
from ms_omni.modeling.layers import Linear
from ms_omni.modeling.ops import cpu_kernel
from ms_omni.modeling.ops.reference import Reference
from ms_omni.modeling.positions import axial_tables
from ms_omni.modeling.talker import TalkerModel
from ms_omni.modeling.thinker import ThinkerTextModel
from ms_omni.modeling.vision_encoder import PatchMerger, VisionBlock, VisionEncoder
from ms_omni.quantised import Storage
from tests.ops import test_fused as fused
from tests.ops.test_stored import stored

try:
    from ms_omni.modeling.ops import cpu_encoder, cpu_fused
    from ms_omni.modeling.ops.cpu import Cpu
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

SEGMENTS = {"one": ((23, 1),), "several": ((9, 2), (5, 1)), "many rows": ((260, 1), (40, 2))}


@pytest.fixture
def cells_alone(monkeypatch):
    """Lets the cells run, over the same operators."""

    def switch():
        monkeypatch.setattr(ops, "fuses_encoders", lambda: False)
        monkeypatch.setattr(ops, "reads_chunks", lambda: False)

    return switch


def vision(width=20, heads=2, inner=28, activation="gelu_pytorch_tanh", depth=2):
    config = SimpleNamespace(hidden_size=width, num_heads=heads, intermediate_size=inner, hidden_act=activation)
    return [VisionBlock(config) for _ in range(depth)]


def audio(width=24, heads=3, inner=40, activation="gelu", depth=2):
    config = SimpleNamespace(
        d_model=width, encoder_attention_heads=heads, encoder_ffn_dim=inner, activation_function=activation
    )
    return [AudioEncoderLayer(config) for _ in range(depth)]


def encoder(kind, layers):
    """An encoder of nothing but layers."""
    made = kind.__new__(kind)
    super(kind, made).__init__()
    setattr(made, "blocks" if kind is VisionEncoder else "layers", ms.nn.CellList(layers))
    return made


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "kind, layers, width",
    [
        (VisionEncoder, vision, 20),
        (AudioEncoder, audio, 24),
        (AudioEncoder, lambda: audio(activation="silu", width=128, heads=2, inner=512), 128),
        (VisionEncoder, lambda: vision(144, 4, 576), 144),
    ],
)
def test_layers_of_an_encoder(kind, layers, width, form, segments, rng, normal, cells_alone):
    cells = [fused.fill(layer, rng) for layer in layers()]
    for linear in (cell for layer in cells for _, cell in layer.cells_and_names()):
        if form != "float32" and type(linear).__name__ == "Linear":
            weight = stored(linear.weight, "bfloat16" if form == "bfloat16" else Storage(8, None, "float32"), rng)[0]
            if form == "bfloat16":
                linear.weight = weight
            else:
                operands = (weight, linear.bias)
                linear.operands = lambda operands=operands: operands
    model, segments = encoder(kind, cells), SEGMENTS[segments]
    rows = sum(length * count for length, count in segments)
    half = width // model.stacked[0].settings()[0] // 2
    rope = (
        axial_tables(np.arange(rows), np.arange(rows) % 7, normal(half // 2))
        if kind is VisionEncoder and half % 2 == 0
        else None
    )
    if kind is VisionEncoder and rope is None:
        rope = Tensor(normal(rows, half)), Tensor(normal(rows, half))
    x = Tensor(normal(rows, width))
    whole = [state.asnumpy() for state in model.states(x, segments, rope)]
    for wanted in ((2,), (0, 2), (1,), ()):
        found = [state.asnumpy() for state in model.states(x, segments, rope, wanted)]
        assert len(found) == len(wanted) and all(map(np.array_equal, found, [whole[number] for number in wanted]))
    assert type(model.prepared) is cpu_encoder.PreparedEncoder and len(whole) == len(cells) + 1
    prepared = model.prepared
    assert [*model.states(x, segments, rope)] and model.prepared is prepared  # not made a second time
    cells_alone()
    model.prepared = None
    for got, want in zip(whole, model.states(x, segments, rope), strict=True):
        assert np.array_equal(got, want.asnumpy())
    assert model.prepared is None


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("postshuffle", [False, True])
def test_a_projector(postshuffle, form, rng, normal, use_operators):
    """Bit for bit its cells, which run where somebody has hooks; other parameters are used at once."""
    merger = fused.fill(
        PatchMerger(SimpleNamespace(hidden_size=20, spatial_merge_size=2, out_hidden_size=24), postshuffle), rng
    )
    for linear in merger.mlp[0], merger.mlp[2]:
        if form != "float32":
            weight = stored(linear.weight, "bfloat16" if form == "bfloat16" else Storage(8, None, "float32"), rng)[0]
            linear.operands = lambda operands=(weight, linear.bias): operands
    x, seen = Tensor(normal(44, 20)), []
    whole = merger(x).asnumpy()
    assert type(merger.projection) is cpu_encoder.PreparedProjector and whole.shape == (11, 24)
    prepared = merger.projection
    assert np.array_equal(merger(x).asnumpy(), whole) and merger.projection is prepared
    handle = merger.mlp[1].register_forward_hook(lambda *_: seen.append(1))
    assert np.array_equal(merger(x).asnumpy(), whole) and seen == [1] and merger.projection is None
    handle.remove()
    merger.ln_q.weight = ms.Parameter(normal(*merger.ln_q.weight.shape), name="other")
    changed = merger(x).asnumpy()
    assert not np.array_equal(changed, whole)
    use_operators(type("CellsAlone", (Cpu,), {"prepare": staticmethod(Reference.prepare)}))
    assert np.array_equal(merger(x).asnumpy(), changed) and merger.projection is None


@pytest.mark.parametrize("what", ["layers", "projector"])
def test_what_is_prepared_of_weights_that_change_in_place(what, rng, normal):
    """Matrices in bfloat16 become float32 in the same parameters; settings are read anew."""
    if what == "layers":
        model = encoder(AudioEncoder, [fused.fill(layer, rng) for layer in audio()])
        linears = [layer.fc1 for layer in model.layers]
        x, run = Tensor(normal(9, 24)), lambda: [*model.states(x, ((9, 1),))][-1].asnumpy()
    else:
        model = fused.fill(
            PatchMerger(SimpleNamespace(hidden_size=20, spatial_merge_size=2, out_hidden_size=24), False), rng
        )
        linears = [model.mlp[0]]
        x, run = Tensor(normal(8, 20)), lambda: model(x).asnumpy()
    for linear in linears:
        linear.weight = stored(linear.weight, "bfloat16", rng)[0]
    before = run()
    for linear in linears:
        numbers = linear.weight.astype(ms.float32)
        linear.weight.set_dtype(ms.float32)
        linear.weight.set_data(numbers)
    assert np.abs(run() - before).max() <= 1e-4 * np.abs(before).max()
    for norm in [layer.self_attn_layer_norm for layer in model.layers] if what == "layers" else [model.ln_q]:
        norm.eps = 3.0
    if what == "layers":
        model.layers[0].settings = lambda: (3, 8**-0.5, 3.0, ops.gelu)
    assert np.abs(run() - before).max() > 1e-2 * np.abs(before).max()


def test_hooks_of_a_gradient_are_called(rng, normal):
    merger = fused.fill(PatchMerger(SimpleNamespace(hidden_size=20, spatial_merge_size=2, out_hidden_size=24), False), rng)
    called = []
    merger.mlp[1].register_backward_hook(lambda *_: called.append("gelu"))
    ms.value_and_grad(lambda x: merger(x).sum())(Tensor(normal(8, 20)))
    assert called == ["gelu"]


def test_a_projector_of_other_sizes(rng, normal):
    merger = PatchMerger(SimpleNamespace(hidden_size=20, spatial_merge_size=2, out_hidden_size=24), False)
    merger.mlp[2] = Linear(76, 24)
    with pytest.raises(InputError, match=r"a projector: fc2 is float32 \[24, 76\], expected .* \[24, 80\]"):
        merger(Tensor(normal(44, 20)))
    with pytest.raises(InputError, match="projector"):
        cell = fused.fill(PatchMerger(SimpleNamespace(hidden_size=20, spatial_merge_size=2, out_hidden_size=24), False), rng)
        try:
            cell(Tensor(normal(43, 20))).asnumpy()
        except RuntimeError as error:
            raise InputError(ops.refusal(error)) from None


def test_an_encoder_takes_few_launches(rng, normal, monkeypatch):
    """Layers up to the next state that somebody wants are one."""
    model, counted, kernel = (
        encoder(AudioEncoder, [fused.fill(layer, rng) for layer in audio(depth=4)]),
        [],
        cpu_encoder._encoder_layers,
    )
    monkeypatch.setattr(cpu_encoder, "_encoder_layers", lambda *given: counted.append(1) or kernel(*given))
    for wanted, launches in (((4,), 1), ((0, 2, 4), 2), (None, 4)):
        counted.clear()
        assert len([*model.states(Tensor(normal(9, 24)), ((9, 1),), None, wanted)]) and len(counted) == launches


@pytest.mark.parametrize("dtype", ["auto", "int8"])
@pytest.mark.parametrize("stack", fused.STACKS)
@pytest.mark.parametrize("kind", [ThinkerTextModel, TalkerModel])
def test_chunks_of_a_prompt(kind, stack, dtype, rng, normal, cells_alone):
    """Chunks of several sizes behind one another, padded; what is injected and what is observed; then a token alone."""
    model, _ = fused.random_stack(fused.STACKS[stack], kind, rng)
    layers, width = len(model.layers), model.config.hidden_size
    chunks = [(0, 40, 48), (40, 5, 16), (45, 1, 16), (46, 1, 1)]
    x = [normal(1, size, width) for _, _, size in chunks]
    added = Tensor(normal(1, 48, width))

    def run(pool, wanted, inject):
        seen, results = {}, []
        for number, (start, count, size) in enumerate(chunks):
            rope = model.rope(fused.positions(range(start, start + size)))
            states = {}
            with_added = (lambda layer, x: x + added if layer < 2 else x) if inject and number == 0 else None
            table = [3, 1, 2, 5]
            hidden = pool.read_chunk(
                model, Tensor(x[number]), rope, start, count, table, with_added, states.__setitem__, wanted
            )
            results.append(hidden.asnumpy()[:, :count])
            seen |= {(number, layer): state.asnumpy()[:, :count] for layer, state in states.items()}
        return results, seen

    found = [
        run(KVPool.of(model, 6, 16, dtype), *case)
        for case in (((), False), ((0, layers), True), ((1,), False), (None, True))
    ]
    cells_alone()
    expected = [run(KVPool.of(model, 6, 16, dtype), None, inject) for inject in (False, True)]
    for (results, seen), (wanted, states) in zip(found, (expected[0], expected[1], expected[0], expected[1]), strict=True):
        for got, want in zip(results, wanted, strict=True):
            assert np.array_equal(got, want)
        for place, state in seen.items():
            assert np.array_equal(state, states[place])
    assert found[0][1] == {} and {layer for _, layer in found[2][1]} == {1}
    assert {layer for _, layer in found[1][1]} == {0, layers} and found[3][1].keys() == expected[1][1].keys()


def test_an_encoder_whose_operators_are_exchanged(rng, normal, use_operators):
    """What one implementation has prepared means nothing to another."""
    model, x = encoder(AudioEncoder, [fused.fill(layer, rng) for layer in audio()]), Tensor(normal(9, 24))
    first = [state.asnumpy() for state in model.states(x, ((9, 1),))]
    model.prepared = SimpleNamespace(weights=None)
    for got, want in zip(model.states(x, ((9, 1),)), first, strict=True):
        assert np.array_equal(got.asnumpy(), want)
    use_operators(Reference)
    for got, want in zip(model.states(x, ((9, 1),)), first, strict=True):
        assert np.allclose(got.asnumpy(), want, atol=1e-5)


def test_what_pads_a_chunk_is_not_computed(rng, normal):
    model, _ = fused.random_stack({}, ThinkerTextModel, rng)
    x, rope = normal(1, 16, model.config.hidden_size), model.rope(fused.positions(range(16)))
    x[:, 3:] = np.nan
    pool = KVPool.of(model, 4, 16)
    hidden = pool.read_chunk(model, Tensor(x), rope, 0, 3, [2]).asnumpy()
    assert np.isfinite(hidden[:, :3]).all() and not hidden[:, 3:].any()
    assert all(np.isfinite(part.asnumpy()).all() for part in (*pool.keys, *pool.values))


def test_the_layers_are_one_launch(rng, normal, monkeypatch):
    model, _ = fused.random_stack({}, ThinkerTextModel, rng)
    counted, kernel = [], cpu_fused._decoder_chunk
    monkeypatch.setattr(cpu_fused, "_decoder_chunk", lambda *given: counted.append(1) or kernel(*given))
    x, rope = Tensor(normal(1, 16, model.config.hidden_size)), model.rope(fused.positions(range(16)))
    KVPool.of(model, 4, 16).read_chunk(model, x, rope, 0, 16, [2], wanted=())
    assert len(counted) == 1
    KVPool.of(model, 4, 16).read_chunk(model, x, rope, 0, 16, [2], None, lambda *_: None, wanted=(0, 1))
    assert len(counted) == 3


def test_hooks_are_called(rng, normal):
    model, _ = fused.random_stack({}, ThinkerTextModel, rng)
    x, rope = Tensor(normal(1, 16, model.config.hidden_size)), model.rope(fused.positions(range(16)))
    pool, seen = KVPool.of(model, 4, 16), []
    without = pool.read_chunk(model, x, rope, 0, 16, [2]).asnumpy()
    handle = model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    assert (
        has_hooks(model) and np.array_equal(pool.read_chunk(model, x, rope, 0, 16, [2]).asnumpy(), without) and seen == [1]
    )
    handle.remove()
    pool.read_chunk(model, x, rope, 0, 16, [2])
    assert seen == [1] and not has_hooks(model)
    layers = encoder(AudioEncoder, [fused.fill(layer, rng) for layer in audio()])
    layers.layers[0].fc1.register_forward_pre_hook(lambda *_: seen.append(2))
    for _ in layers.states(Tensor(normal(9, 24)), ((9, 1),)):
        pass
    assert seen == [1, 2] and layers.prepared is None


def test_layers_of_other_sizes(rng):
    model = encoder(AudioEncoder, [fused.fill(layer, rng) for layer in (*audio(depth=1), *audio(inner=44, depth=1))])
    with pytest.raises(InputError, match=r"a layer of an encoder: fc1 is float32 \[44, 24\], expected .* \[40, 24\]"):
        model.ready()


@pytest.mark.parametrize("ends", [(9, 8), (9, 20), (9,), (-1, 9), ()])
def test_segments_that_do_not_cover_the_rows(ends, rng, normal, monkeypatch):
    model = encoder(AudioEncoder, [fused.fill(layer, rng) for layer in audio()])
    model.ready()
    monkeypatch.setattr(cpu_encoder, "segment_ends", lambda _: Tensor(np.array(ends, np.int32)))
    with pytest.raises(InputError, match="segments do not cover the rows"):
        try:
            for state in ops.encoder_states(Tensor(normal(10, 24)), None, None, model.prepared, (2,)):
                state.asnumpy()
        except RuntimeError as error:
            raise InputError(ops.refusal(error)) from None


def test_a_table_of_another_chunk(rng, normal):
    model, _ = fused.random_stack({}, ThinkerTextModel, rng)
    pool, chunk = KVPool.of(model, 4, 16), cpu_fused._Chunk
    x, rope = Tensor(normal(1, 16, model.config.hidden_size)), model.rope(fused.positions(range(16)))
    pool.read_chunk(model, x, rope, 0, 16, [2])
    for wrong in ({"count": 17}, {"start": 1}, {"count": 0}, {"end": 9}, {"begin": 2, "end": 1}):
        cpu_fused._Chunk = lambda wrong=wrong, **given: chunk(**{**given, **wrong})
        try:
            with pytest.raises(InputError, match="decoder_chunk: "):
                pool.read_chunk(model, x, rope, 0, 16, [2]).asnumpy()
        finally:
            cpu_fused._Chunk = chunk
    assert cpu_kernel.refusal(RuntimeError("nothing of ours")) is None

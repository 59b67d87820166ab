"""The vocoder: equal to the reference's whole decode, and to itself however a stream is split."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.config import Qwen3OmniMoeCode2WavConfig
from ms_omni.errors import InputError
from ms_omni.modeling import code2wav as module
from ms_omni.modeling.cache import window_mask
from ms_omni.modeling.code2wav import Code2Wav
from ms_omni.modeling.layer import lazy_parameters
from tests.conftest import GAPS
from tests.parity.watching import watching
from tests.reference import code2wav_cases as cases
from tests.reference.store import DATA, Reference

TOLERANCE = 1e-5  # relative to the largest value


@pytest.fixture(scope="module", autouse=True)
def launch_blocking():
    ms.runtime.launch_blocking()


@pytest.fixture(scope="module")
def reference():
    return Reference(DATA / cases.FILE)


def build(geometry):
    with lazy_parameters(ms.float32):
        vocoder = Code2Wav(Qwen3OmniMoeCode2WavConfig.from_dict(cases.GEOMETRIES[geometry]))
    for name, parameter in vocoder.parameters_and_names():
        parameter.set_data(Tensor(cases.weight(name, tuple(parameter.shape))))
    return vocoder


@pytest.fixture(scope="module")
def vocoders():
    return {geometry: build(geometry) for geometry in cases.GEOMETRIES}


@pytest.fixture(params=cases.GEOMETRIES)
def geometry(request):
    return request.param


@pytest.fixture
def vocoder(vocoders, geometry):
    vocoders[geometry].reset()
    return vocoders[geometry]


@pytest.fixture(scope="module")
def whole(vocoders):
    """The wave of all recorded frames per geometry, as numpy."""
    return {name: vocoder.decode(cases.codes(name)).asnumpy() for name, vocoder in vocoders.items()}


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(initial=0), 1))


def joined(step, codes, sizes):
    """The pieces of a stream whose steps have these sizes, repeated until the codes are used up."""
    pieces, start, turn = [], 0, 0
    while start < codes.shape[-1]:
        size = sizes[turn % len(sizes)]
        pieces.append(step(codes[..., start : start + size]).asnumpy())
        start, turn = start + size, turn + 1
    return np.concatenate(pieces, axis=-1)


def test_whole_and_every_block_equal_the_reference(vocoder, geometry, reference, monkeypatch):
    codes = cases.codes(geometry)
    monkeypatch.setattr(module, "CHUNK_FRAMES", codes.shape[-1])
    cells = {f"layer{i}": layer for i, layer in enumerate(vocoder.pre_transformer.layers)}
    cells |= {"norm": vocoder.pre_transformer.norm}
    cells |= {f"upsample{i}/{j}": block for i, pair in enumerate(vocoder.upsample) for j, block in enumerate(pair)}
    cells |= {f"decoder{i}": block for i, block in enumerate(vocoder.decoder)}
    with watching(**cells) as seen:
        wave = vocoder.decode(codes).asnumpy()
    values = {name: seen[name][0] for name in cells}
    values |= {"wave": wave, "start": wave[..., :500], "end": wave[..., -500:]}
    for name, value in values.items():
        gap, scale = reference.gap(f"{geometry}/{name}", value)
        part = f"code2wav {geometry}: {name.rstrip('0123456789/')}"
        GAPS[part] = max(GAPS.get(part, (0, 0)), (gap / scale, TOLERANCE))
        assert gap <= TOLERANCE * max(scale, 1), f"{name}: {gap} of {scale}"
    assert wave.dtype == np.float32


def test_chunks_of_decode_change_nothing(geometry, whole, reference):
    gap, _ = reference.gap(f"{geometry}/wave", whole[geometry])
    assert gap <= TOLERANCE


@pytest.mark.parametrize("sizes", [(1,), (3,), (7,), (50,), (1, 2, 9, 4), (2, 0, 5)], ids=str)
def test_any_split_equals_the_whole(vocoder, geometry, whole, sizes):
    codes = cases.codes(geometry)
    frames = min(codes.shape[-1], 60 if min(sizes) < 3 else 240)
    pieces = joined(vocoder.step, codes[..., :frames], sizes)
    assert_close(pieces, whole[geometry][..., : vocoder.num_samples(frames)])


def test_number_of_samples(vocoder, geometry, reference):
    assert vocoder.held_samples == {"published_rates": 555, "bare": 6 + 2 + 2}[geometry]
    assert vocoder.num_samples(cases.FRAMES[geometry]) == reference.shapes[f"{geometry}/wave"][-1]
    for frames in range(4):
        wave = vocoder.decode(cases.codes(geometry)[..., :frames])
        assert tuple(wave.shape) == (cases.ROWS, 1, vocoder.num_samples(frames))


def test_early_steps_may_give_nothing(vocoders):
    vocoder, codes = vocoders["bare"], cases.codes("bare")
    stream = vocoder.stream()
    lengths = [stream.step(codes[..., i : i + 1]).shape[-1] for i in range(4)]
    assert lengths == [0, 2, 6, 6]


def test_later_frames_do_not_change_what_is_out(vocoder, geometry, whole):
    codes = cases.codes(geometry)
    short = vocoder.decode(codes[:1, :, :17]).asnumpy()
    assert_close(short, whole[geometry][:1, :, : vocoder.num_samples(17)])


def test_streams_do_not_disturb_one_another(vocoder, geometry, whole):
    codes, expected = cases.codes(geometry), whole[geometry]
    one, other = vocoder.stream(), vocoder.stream()
    pieces = ([], [])
    for start in range(0, 24, 4):
        pieces[0].append(one.step(codes[:1, :, start : start + 4]).asnumpy())
        vocoder.decode(codes[..., :5])
        vocoder.step(codes[..., :2])
        pieces[1].append(other.step(codes[1:, :, start : start + 4]).asnumpy())
    for row in range(2):
        wave = np.concatenate(pieces[row], axis=-1)
        assert_close(wave, expected[row : row + 1, :, : vocoder.num_samples(24)])


def test_a_state_can_be_continued_twice(vocoder, geometry):
    codes = cases.codes(geometry)
    _, state = vocoder.advance(codes[..., :9], vocoder.new_state())
    first, _ = vocoder.advance(codes[..., 9:15], state)
    vocoder.advance(codes[..., 20:26], state)
    again, _ = vocoder.advance(codes[..., 9:15], state)
    np.testing.assert_array_equal(first.asnumpy(), again.asnumpy())


def test_reset_starts_again(vocoder, geometry, whole):
    codes = cases.codes(geometry)[..., :6]
    vocoder.step(codes[:1])
    vocoder.reset()
    assert_close(vocoder.step(codes).asnumpy(), whole[geometry][..., : vocoder.num_samples(6)])


def state_bytes(state):
    tensors = [*state.keys, *state.values, *state.tails]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def test_state_does_not_grow(vocoders):
    vocoder, codes = vocoders["bare"], cases.codes("bare")
    state, sizes = vocoder.new_state(), []
    for start in range(0, 240, 10):
        _, state = vocoder.advance(codes[..., start : start + 10], state)
        sizes.append(state_bytes(state))
    assert set(sizes) == {sizes[0]}
    assert state.frames == 240
    window = vocoder.config.sliding_window - 1
    assert all(tensor.shape[2] == window for tensor in state.keys + state.values)


def test_positions_stay_accurate_for_an_hour(vocoder, geometry, whole):
    """Attention sees distances only, so a stream whose count starts at an hour must give the same wave."""
    codes = cases.codes(geometry)[..., :40]
    late = dataclasses.replace(vocoder.new_state(), frames=45_000)
    wave, _ = vocoder.advance(codes, late)
    assert_close(wave.asnumpy(), whole[geometry][..., : vocoder.num_samples(40)], 2e-5)


def test_window_is_that_of_the_reference():
    """Position i sees i - window + 1 .. i."""
    assert (window_mask(2, 3, 3) == 0).astype(int).tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_the_reference_chunks_lose_samples(vocoder, geometry, reference):
    """Its chunks, rebuilt with the reference's left context: short at every boundary, which is why ours are not so."""
    codes, per_frame = cases.codes(geometry), vocoder.config.samples_per_frame
    size, context = 12, 5
    parts = []
    for start in range(0, codes.shape[-1], size):
        left = context if start > context else start
        part = vocoder.decode(codes[..., start - left : start + size]).asnumpy()
        parts.append(part[..., left * per_frame :])
    lossy = np.concatenate(parts, axis=-1)
    gap, _ = reference.gap(f"{geometry}/chunked", lossy)
    assert gap <= TOLERANCE
    missing = vocoder.num_samples(codes.shape[-1]) - lossy.shape[-1]
    assert missing == vocoder.held_samples * (len(parts) - 1)


def test_no_frames_give_no_samples(vocoder, geometry):
    none = np.zeros((2, vocoder.config.num_quantizers, 0), np.int64)
    assert tuple(vocoder.decode(none).shape) == (2, 1, 0)
    assert tuple(vocoder.step(none).shape) == (2, 1, 0)


def test_tensors_are_taken_as_well(vocoder, geometry, whole):
    codes = cases.codes(geometry)[..., :3]
    assert_close(vocoder(Tensor(codes)).asnumpy(), whole[geometry][..., : vocoder.num_samples(3)])


@pytest.mark.parametrize(
    "codes, message",
    [
        (np.zeros((1, 2, 5), np.int64), r"shape \[1, 2, 5\].*\[batch, 3, frames\]"),
        (np.zeros((3, 5), np.int64), r"shape \[3, 5\]"),
        (np.zeros((0, 3, 5), np.int64), r"shape \[0, 3, 5\]"),
        (np.zeros((1, 3, 5), np.float32), "dtype float32"),
        (np.full((1, 3, 5), 30), "from 30 to 30.*0 to 29"),
        (np.full((1, 3, 5), -1), "from -1 to -1"),
    ],
    ids=["quantizers", "rank", "no rows", "dtype", "too large", "negative"],
)
def test_wrong_codes_are_refused(vocoders, codes, message):
    with pytest.raises(InputError, match=message):
        vocoders["bare"].decode(codes)


def test_another_batch_size_is_refused_and_changes_nothing(vocoder, geometry, whole):
    codes = cases.codes(geometry)
    first = vocoder.step(codes[..., :4]).asnumpy()
    with pytest.raises(InputError, match="2 rows, got codes for 1"):
        vocoder.step(codes[:1, :, 4:8])
    rest = vocoder.step(codes[..., 4:8]).asnumpy()
    assert_close(np.concatenate([first, rest], axis=-1), whole[geometry][..., : vocoder.num_samples(8)])

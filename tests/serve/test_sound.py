"""Encoders of speech: each format decodes to what went in, whole or in pieces, as it is made; tempo keeps the pitch."""

import io

import av
import numpy as np
import pytest
import soundfile

from ms_omni.errors import InputError
from ms_omni.outputs import SPEECH_RATE_HZ as RATE_HZ
from ms_omni.outputs import pcm16
from ms_omni.serve.sound import FORMATS, Encoder, Tempo, encode

EXACT = ("wav", "pcm", "pcm16", "flac")
DELAY_SAMPLES = 2600
"""The most that a codec here puts before a sound or behind it."""
PIECE = 1920


def speech(seconds=2.0):
    """A voice of a kind: harmonics that glide under a slow envelope."""
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * (140 * time + 20 * np.sin(2 * np.pi * 1.3 * time))
    sound = sum(np.sin(order * phase) / order for order in range(1, 12))
    return (0.3 * sound * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def streamed(samples, format, piece=PIECE):
    """Encoded piece by piece -> (all that was returned, how much of it before the end)."""
    encoder = Encoder(format)
    early = b"".join(encoder.write(samples[start : start + piece]) for start in range(0, len(samples), piece))
    return early + encoder.finish(), len(early)


def decoded(data, format):
    """Samples float `[n]` of a file, by FFmpeg."""
    if format.startswith("pcm"):
        return np.frombuffer(data, "<i2") / 32767
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.audio[0].channels == 1
        resampler = av.AudioResampler("flt", "mono", RATE_HZ)
        frames = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def alike(found, expected):
    """The correlation at the best delay."""
    size = 1 << (len(found) + len(expected)).bit_length()
    across = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size)), size)
    return float(across.max() / np.linalg.norm(found) / np.linalg.norm(expected))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
@pytest.mark.parametrize("format", FORMATS)
def test_decodes_to_what_went_in(format, whole):
    samples = speech()
    data = encode(samples, format) if whole else streamed(samples, format)[0]
    found = decoded(data, format)
    if format in EXACT:
        np.testing.assert_allclose(found, pcm16(samples) / (32767 if format.startswith("pcm") else 32768), atol=1e-7)
    else:
        assert abs(len(found) - len(samples)) <= DELAY_SAMPLES
        assert alike(found, samples) > 0.98


@pytest.mark.parametrize("format", FORMATS)
def test_pieces_are_sent_as_they_are_made(format):
    data, early = streamed(speech(), format)
    assert early > 0.7 * len(data)


@pytest.mark.parametrize("format", FORMATS)
def test_pieces_of_any_size_make_the_same_file(format):
    samples = speech(0.7)
    sizes = [streamed(samples, format, piece)[0] for piece in (1, 977, len(samples))]
    if format == "opus":  # its streams have random numbers
        sizes = [decoded(data, format).tobytes() for data in sizes]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("format", FORMATS)
def test_silence_of_no_length(format):
    assert isinstance(encode(np.zeros(0, np.float32), format), bytes)
    assert isinstance(streamed(np.zeros(0, np.float32), format)[0], bytes)


def test_other_readers():
    samples = speech(0.5)
    for format in ("wav", "flac", "mp3", "opus"):
        found, rate_hz = soundfile.read(io.BytesIO(encode(samples, format)))
        assert abs(len(found) * RATE_HZ / rate_hz - len(samples)) <= DELAY_SAMPLES


def test_headers_of_wav():
    samples = speech(0.1)
    whole, piecemeal = encode(samples, "wav"), streamed(samples, "wav")[0]
    assert (
        int.from_bytes(whole[4:8], "little") == len(whole) - 8 and int.from_bytes(whole[40:44], "little") == len(whole) - 44
    )
    assert piecemeal[4:8] == piecemeal[40:44] == b"\xff" * 4 and piecemeal[44:] == whole[44:]


def test_too_loud_is_clipped():
    np.testing.assert_array_equal(np.frombuffer(encode(np.array([-3.0, 3.0]), "pcm"), "<i2"), [-32767, 32767])


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.8, 1.0, 1.3, 2.0, 4.0])
def test_tempo_changes_length_and_not_pitch(speed):
    tone = np.sin(2 * np.pi * 220 * np.arange(2 * RATE_HZ) / RATE_HZ).astype(np.float32)
    tempo = Tempo(speed)
    pieces = [tempo.write(tone[start : start + PIECE]) for start in range(0, len(tone), PIECE)]
    found = np.concatenate([*pieces, tempo.finish()])
    assert len(found) == pytest.approx(len(tone) / speed, rel=0.03)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert spectrum.argmax() * RATE_HZ / len(found) == pytest.approx(220, rel=0.03)
    assert sum(map(len, pieces)) > 0.7 * len(found), "nothing before the end"
    if speed == 1:
        np.testing.assert_array_equal(found, tone)


def test_tempo_of_nothing():
    for speed in (1, 2):
        tempo = Tempo(speed)
        assert not len(tempo.write(np.zeros(0, np.float32))) and not len(tempo.finish())


def test_refusals():
    with pytest.raises(InputError, match="no sound format 'ogg'.*wav, pcm"):
        Encoder("ogg")
    for speed in (0.2, 4.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="speed is .*, expected 0.25 to 4"):
            Tempo(speed)

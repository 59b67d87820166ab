"""Sound of every kind to 16 kHz mono, and damaged files."""

import numpy as np
import pytest
import soundfile

from ms_omni.errors import MediaError
from ms_omni.media import load_audio
from tests.input.make_files import cut, tone, write_sound, write_video


def wav(path, samples, rate_hz=16000, **kwargs):
    soundfile.write(path, samples, rate_hz, **kwargs)
    return path


def test_16_khz_wav_is_exact(tmp_path):
    samples = tone(0.5, 16000)
    np.testing.assert_array_equal(load_audio(wav(tmp_path / "a.wav", samples)), samples[:, 0] / np.float32(32768))


@pytest.mark.parametrize("rate_hz, channels", [(8000, 1), (44100, 2), (48000, 6), (11025, 1)])
def test_any_rate_and_channels(tmp_path, rate_hz, channels):
    out = load_audio(wav(tmp_path / "a.wav", tone(1.0, rate_hz, channels), rate_hz))
    assert out.dtype == np.float32 and out.shape == (16000,)
    spectrum = np.abs(np.fft.rfft(out))
    assert {330 * (k + 1) for k in range(channels)} == set(np.argsort(spectrum)[-channels:].tolist())


@pytest.mark.parametrize(
    "name, subtype",
    [
        ("a.wav", "FLOAT"),
        ("a.wav", "ULAW"),
        ("a.wav", "PCM_24"),
        ("a.flac", "PCM_16"),
        ("a.ogg", "VORBIS"),
        ("a.mp3", "MPEG_LAYER_III"),
        ("a.aiff", "PCM_16"),
    ],
)
def test_formats_and_their_cut_copies(tmp_path, name, subtype):
    path = wav(tmp_path / name, tone(2.0, 8000), 8000, subtype=subtype)
    assert load_audio(path).shape == (32000,)
    for share in (0.3, 0.7, 0.97):
        with pytest.raises(MediaError, match="cut short|damaged"):
            load_audio(cut(path, share))


@pytest.mark.parametrize(
    "name, codec, channels", [("a.m4a", "aac", 2), ("a.m4a", "aac", 6), ("a.mka", "aac", 1), ("a.opus", "libopus", 2)]
)
def test_what_ffmpeg_reads(tmp_path, name, codec, channels):
    path = write_sound(tmp_path / name, tone(2.0, 48000, channels), 48000, codec)
    assert abs(len(load_audio(path)) - 32000) < 1600
    with pytest.raises(MediaError, match="cut short"):
        load_audio(cut(path, 0.6))


def test_sound_track_of_a_video_given_as_audio(tmp_path):
    assert abs(len(load_audio(write_video(tmp_path / "v.mp4"))) - 48000) < 1600
    with pytest.raises(MediaError, match="no sound track"):
        load_audio(write_video(tmp_path / "silent.mp4", sound=False))


def test_wav_written_to_a_pipe_declares_no_length(tmp_path):
    content = bytearray(wav(tmp_path / "a.wav", tone(1.0, 16000)).read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    assert load_audio(bytes(content)).shape == (16000,)


def test_parts(tmp_path):
    path = wav(tmp_path / "a.wav", tone(2.0, 16000))
    whole = load_audio(path)
    np.testing.assert_array_equal(load_audio(path, 0.5, 1.25), whole[8000:20000])
    np.testing.assert_array_equal(load_audio(whole, 0.5, 1.25), whole[8000:20000])
    np.testing.assert_array_equal(load_audio(path, 1.5, 9.0), whole[24000:])
    with pytest.raises(MediaError, match="lasts 2.00 s"):
        load_audio(path, 2.5)


def test_arrays():
    samples = tone(0.5, 16000)[:, 0]
    scaled = samples / np.float32(32768)
    np.testing.assert_array_equal(load_audio(samples), scaled)
    np.testing.assert_array_equal(load_audio(scaled.astype(np.float64)), scaled)
    np.testing.assert_array_equal(load_audio(scaled[None]), scaled)
    assert load_audio((scaled, 8000)).shape == (16000,)


@pytest.mark.parametrize(
    "value, complaint",
    [
        (np.zeros((500, 20), np.float32), "at most 8 channels"),
        (np.zeros((4, 2), np.float32), "at most 8 channels"),
        (np.zeros(200, np.float32), "at least 201"),
        (np.zeros(0, np.float32), "at least"),
        (np.full(500, np.nan), "not finite"),
        (np.full(500, np.inf), "not finite"),
        (np.zeros(500, np.uint32), "type uint32"),
        ((np.zeros(500), 0), "sampling rate"),
        ((np.zeros(500), "16k"), "sampling rate"),
        (None, "give a path"),
    ],
)
def test_arrays_that_cannot_be_sound(value, complaint):
    with pytest.raises(MediaError, match=complaint):
        load_audio(value)


def test_empty_short_and_foreign_files(tmp_path):
    with pytest.raises(MediaError, match="holds no samples"):
        load_audio(wav(tmp_path / "none.wav", np.zeros(0)))
    with pytest.raises(MediaError, match="at least 201"):
        load_audio(wav(tmp_path / "short.wav", np.zeros(200)))
    with pytest.raises(MediaError, match="not finite"):
        load_audio(wav(tmp_path / "nan.wav", np.full(500, np.nan, np.float32), subtype="FLOAT"))
    (tmp_path / "text.wav").write_text("not a sound at all " * 20)
    with pytest.raises(MediaError, match="cannot be read as sound"):
        load_audio(tmp_path / "text.wav")

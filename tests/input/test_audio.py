"""Sound of every kind to 16 kHz mono, and damaged files."""

import struct

import numpy as np
import pytest
import soundfile
import soxr

from ms_omni.errors import MediaError
from ms_omni.input.audio import decode_sound_track
from ms_omni.input.media import limits
from ms_omni.media import load_audio, load_video
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


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.flac", "a.aac"])
def test_files_joined_end_to_end_are_heard_whole(tmp_path, name):
    """As `cat` and some speech services make them; the second part has another rate and number of channels."""
    if name == "a.aac":
        parts = [write_sound(tmp_path / name, tone(1.0, rate, n), rate, "aac") for rate, n in ((44100, 1), (48000, 2))]
    else:
        parts = [wav(tmp_path / f"{rate}{name}", tone(1.0, rate, n), rate) for rate, n in ((16000, 1), (22050, 2))]
    first, second = (part.read_bytes() for part in parts)
    lengths = [len(load_audio(part)) for part in (first, second)]
    joined = load_audio(first + second)
    assert abs(len(joined) - sum(lengths)) < 2000
    loudness = np.abs(joined[: len(joined) // 2000 * 2000]).reshape(-1, 2000).max(1)
    assert (loudness[1:-1] > 0.1).all()


def test_wav_headers_that_miscount(tmp_path):
    content = wav(tmp_path / "a.wav", tone(1.0, 16000)).read_bytes()
    for size in (0, 0x7FFFFFFF, 0xFFFFFFFF, len(content), len(content) - 8, 32001):
        patched = content[:40] + size.to_bytes(4, "little") + content[44:]
        assert load_audio(patched).shape == (16000,)
        assert load_audio(patched[:4] + b"\xff\xff\xff\xff" + patched[8:]).shape == (16000,)
    assert load_audio(content[:-1]).shape == (15999,)
    assert load_audio(content + b"LIST\x0a\0\0\0INFOISFT\0\0").shape == (16000,)
    with pytest.raises(MediaError, match="cut short"):
        load_audio(content[:-2000])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "kind", ["RF64", "W64", "CAF", "AU", "SVX", "VOC", "NIST", "MAT4", "MAT5", "AVR", "MPC2K", "WVE", "HTK", "SDS"]
)
def test_rarer_formats_and_their_cut_copies(tmp_path, kind, channels):
    channels = 1 if kind in ("SVX", "WVE", "HTK", "SDS") else channels
    rate_hz = 8000 if kind == "WVE" else 16000
    path = wav(tmp_path / "a.x", tone(1.0, rate_hz, channels), rate_hz, format=kind)
    assert load_audio(path).shape == (16000,)
    for share in (0.3, 0.5, 0.7, 0.97):
        with pytest.raises(MediaError, match={"HTK": "cannot be read", "SDS": "damaged"}.get(kind, "cut short")):
            load_audio(cut(path, share))


@pytest.mark.parametrize("channels, complaint", [(0, "no sound track"), (0x7F000001, "channels|no sound track")])
def test_headers_with_no_channels_or_millions(tmp_path, channels, complaint):
    content = wav(tmp_path / "a.caf", tone(1.0, 16000)).read_bytes()
    place = content.index(b"desc") + 12 + 24
    with pytest.raises(MediaError, match=complaint):
        load_audio(content[:place] + struct.pack(">I", channels) + content[place + 4 :])


@pytest.mark.parametrize("kind, subtype", [("AU", "G721_32"), ("W64", "GSM610"), ("AIFF", "GSM610")])
def test_sounds_in_which_nothing_can_be_sought(tmp_path, kind, subtype):
    path = wav(tmp_path / "a.x", tone(1.0, 16000), format=kind, subtype=subtype)
    assert abs(len(load_audio(path)) - 16000) < 200
    with pytest.raises(MediaError, match="cut short"):
        load_audio(cut(path, 0.7))


@pytest.mark.parametrize(
    "name, codec, rate_hz",
    [
        ("a.sox", "pcm_s32le", 16000),
        ("a.tta", "tta", 16000),
        ("a.wv", "wavpack", 16000),
        ("a.voc", "pcm_s16le", 16000),
        ("a.voc", "pcm_u8", 16000),
        ("a.avi", "pcm_s16le", 16000),
        ("a.rm", "ac3", 48000),
        ("a.wma", "wmav2", 44100),
    ],
)
def test_rarer_formats_of_ffmpeg_and_their_cut_copies(tmp_path, name, codec, rate_hz):
    path = write_sound(tmp_path / name, tone(3.0, rate_hz), rate_hz, codec)
    assert abs(len(load_audio(path)) - 48000) < 1200
    for share in (0.3, 0.5, 0.7, 0.97):
        with pytest.raises(MediaError, match="cut short"):
            load_audio(cut(path, share))


def qoa(declared, samples):
    """Frames of at most 5,120 samples at 16 kHz, 20 of them in 8 bytes."""
    content = b"qoaf" + struct.pack(">I", declared)
    for first in range(0, samples, 5120):
        count = min(5120, samples - first)
        slices = -(-count // 20)
        header = struct.pack(">BBHHH", 1, 0, 16000, count, 24 + 8 * slices)
        content += header + bytes(16) + bytes(range(8)) * slices
    return content


def test_a_qoa_sound_without_its_last_frames():
    assert load_audio(qoa(16000, 16000)).shape == (16000,)
    for content in (qoa(16000, 16000)[:-200], qoa(16000, 10240)):
        with pytest.raises(MediaError, match="cut short"):
            load_audio(content)


def test_a_dsf_sound_without_its_end():
    samples = b"\x69" * (4096 * 12)
    layout = struct.pack("<QIIIIIIQII", 52, 1, 0, 1, 1, 2822400, 1, len(samples) * 8, 4096, 0)
    content = b"DSD " + struct.pack("<QQQ", 28, 92 + len(samples), 0) + b"fmt " + layout
    content += b"data" + struct.pack("<Q", 12 + len(samples)) + samples
    assert abs(len(load_audio(content)) - 2229) < 2
    with pytest.raises(MediaError, match="cut short"):
        load_audio(content[:30000])


@pytest.mark.parametrize("kind", ["IRCAM", "PVF", "PAF"])
def test_formats_that_do_not_say_how_long_they_are(tmp_path, kind):
    """What is there is all, as of raw streams."""
    path = wav(tmp_path / "a.x", tone(1.0, 16000), format=kind)
    assert load_audio(path).shape == (16000,)


@pytest.mark.parametrize(
    "kind, endian, place, unknown",
    [
        ("AU", "FILE", 8, b"\xff" * 4),
        ("AU", "FILE", 8, bytes(4)),
        ("AU", "LITTLE", 8, bytes(4)),
        ("AIFF", "FILE", 4, bytes(4)),
        ("AIFF", "FILE", 4, b"\x7f\0\0\x2e"),  # SoX
        ("AIFF", "FILE", 4, b"\xff" * 4),
        ("W64", "FILE", 16, bytes(8)),
        ("W64", "FILE", 16, b"\xff" * 8),
    ],
)
def test_sounds_whose_writers_did_not_know_their_length(tmp_path, kind, endian, place, unknown):
    """Into a pipe: what is there is all."""
    content = wav(tmp_path / "a.x", tone(1.0, 16000), format=kind, endian=endian).read_bytes()
    assert load_audio(content[:place] + unknown + content[place + len(unknown) :]).shape == (16000,)


def test_a_sox_sound_whose_writer_did_not_know_its_length(tmp_path):
    content = write_sound(tmp_path / "a.sox", tone(1.0, 16000), 16000, "pcm_s32le").read_bytes()
    assert load_audio(content[:8] + bytes(8) + content[16:]).shape == (16000,)


def test_a_caf_whose_writer_did_not_know_its_length(tmp_path):
    content = wav(tmp_path / "a.caf", tone(1.0, 16000)).read_bytes()
    place = content.index(b"data") + 4
    assert load_audio(content[:place] + b"\xff" * 8 + content[place + 8 :]).shape == (16000,)


def test_a_header_that_promises_more_than_all_frames_hold(tmp_path):
    content = bytearray(wav(tmp_path / "a.flac", tone(1.0, 16000)).read_bytes())
    content[25] = 0x7F  # the total in STREAMINFO
    assert load_audio(bytes(content)).shape == (16000,)
    content = bytearray(wav(tmp_path / "a.mp3", tone(1.0, 16000)).read_bytes())
    place = content.index(b"Xing") + 8
    content[place : place + 8] = bytes([0, 1, 0, 0]) * 2  # frames and bytes
    assert abs(len(load_audio(bytes(content))) - 16000) < 1300


def test_pieces_are_resampled_as_the_whole(tmp_path):
    samples = tone(3.0, 44100)
    out = load_audio(wav(tmp_path / "a.wav", samples, 44100), 0.5, 2.5)
    whole = soxr.resample(samples[22050:110250, 0] / np.float32(32768), 44100, 16000, quality="HQ")
    np.testing.assert_array_equal(out, whole)


def test_limit_of_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "sound_s", 1.5)
    path = wav(tmp_path / "a.wav", tone(2.0, 16000))
    assert load_audio(path, 0.5).shape == (24000,)
    with pytest.raises(MediaError, match=r"over 1.5 s.*limits\.sound_s"):
        load_audio(path)


def heard(path, *part):
    """The tone and the silence in the sound beside a video's pictures, in seconds."""
    with open(path, "rb") as file:
        sound = decode_sound_track(file, "the video", *part)
    loud = np.flatnonzero(np.abs(sound) > 0.05) / 16000
    return len(sound) / 16000, loud[0], loud[-1]


def test_sound_keeps_its_place_beside_the_pictures(tmp_path):
    for name in ("v.mp4", "v.mkv", "v.ts"):
        path = write_video(tmp_path / name, late_s=1.0, samples=[tone(1.0, 44100)])
        assert heard(path) == pytest.approx((2.0, 1.0, 2.0), abs=0.05)
        assert heard(path, 0.5, 1.5) == pytest.approx((1.0, 0.5, 1.0), abs=0.05)
    early = write_video(tmp_path / "early.mkv", times_ms=[500 + 100 * k for k in range(30)], samples=[tone(2.0, 44100)])
    with pytest.warns(UserWarning, match="before its first picture"):
        assert heard(early) == pytest.approx((1.5, 0.0, 1.5), abs=0.05)


def test_the_default_track_is_heard(tmp_path):
    path = write_video(tmp_path / "v.mkv", samples=[tone(3.0, 44100), tone(1.0, 44100, 2)])
    assert heard(path)[0] == pytest.approx(1.0, abs=0.05)
    assert len(load_audio(path)) == pytest.approx(16000, abs=800)


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.9])
def test_a_sound_that_cannot_be_heard_is_said(tmp_path, seconds):
    """No packets, too few samples, over before the part that is taken."""
    path = write_video(tmp_path / "v.mkv", samples=[tone(seconds, 44100)])
    with open(path, "rb") as file, pytest.warns(UserWarning, match="seen without sound"):
        assert decode_sound_track(file, "the video", 1.0) is None


def test_names_in_any_encoding_are_no_matter(tmp_path):
    content = bytearray(wav(tmp_path / "a.wav", tone(1.0, 16000)).read_bytes())
    name = b"INFOINAM\x04\0\0\0\xc4\xe3\xba\xc3"
    assert load_audio(bytes(content + b"LIST" + len(name).to_bytes(4, "little") + name)).shape == (16000,)


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
        (np.zeros(0, np.float32), "no samples"),
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


def test_mel_features_of_pieces_are_those_of_the_whole(monkeypatch):
    from ms_omni.input import mel

    extractor = mel.WhisperFeatureExtractor(feature_size=128)
    waves = np.random.default_rng(0).standard_normal((2, 16000)).astype(np.float32) * 0.1
    whole = super(mel.WhisperFeatureExtractor, extractor)._np_extract_fbank_features(waves, "cpu")
    monkeypatch.setattr(mel, "_FRAMES_AT_ONCE", 33)
    np.testing.assert_allclose(extractor._np_extract_fbank_features(waves, "cpu"), whole, atol=1e-6)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"<html><head><title>Not found</title></head></html>", r"a web page \(HTML\)"),
        (b'{"error": "no such file"}', "a JSON text"),
        (b"MThd\0\0\0\6\0\1\0\1\0\x60", "MIDI, which holds notes only"),
        (b"%PDF-1.7 " + bytes(99), "a PDF document"),
        (b"hello, this is a note about the sound", "a text that begins with 'hello, this is a note about"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0mp42isom\0\0\0\x09free\0", "M4A.*damaged or not complete"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC picture; give it as an image item"),
    ],
)
def test_what_a_file_is_instead_of_a_sound_is_said(content, said):
    with pytest.raises(MediaError, match=said):
        load_audio(content)


def test_encryption_is_said(tmp_path):
    content = bytearray(write_video(tmp_path / "v.mp4", sound=False).read_bytes())
    place = content.index(b"avc1", content.index(b"stsd"))
    content[place : place + 4] = b"encv"
    with pytest.raises(MediaError, match=r"encrypted \(DRM\)"):
        load_video(bytes(content))


@pytest.mark.parametrize("second", [1e308, float("inf"), float("nan"), -1e308, 10**400])
def test_seconds_that_nobody_can_count(second):
    for part in ({"start_s": second}, {"end_s": second}):
        with pytest.raises(MediaError, match="second"):
            load_audio(np.zeros(1000, np.float32), **part)

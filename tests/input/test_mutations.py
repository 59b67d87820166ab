"""Files with random damage end in a result or in one of our errors, whatever the decoders think of them."""

import io
import warnings

import numpy as np
import pytest
import soundfile
from PIL import Image

from ms_omni.errors import OmniError
from ms_omni.media import load_audio, load_image, load_video
from tests.input.make_files import tone, write_sound, write_video

MUTATIONS = 60


def mutated(content, rng):
    """A copy with some bytes changed, half of them near the start, and now and then the end cut off."""
    copy = bytearray(content)
    for _ in range(rng.integers(1, 12)):
        reach = len(copy) if rng.random() < 0.5 else min(len(copy), 300)
        copy[rng.integers(0, reach)] = rng.choice([0, 127, 255, rng.integers(0, 256)])
    return bytes(copy[: rng.integers(1, len(copy))] if rng.random() < 0.3 else copy)


def survives(load, content):
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(MUTATIONS):
            try:
                load(mutated(content, rng))
            except OmniError as error:
                assert "\n" not in str(error)
    return True


@pytest.mark.parametrize("suffix", ["jpeg", "png", "bmp", "gif", "webp", "tiff", "qoi"])
def test_pictures(suffix):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, suffix)
    assert survives(load_image, buffer.getvalue())


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "voc", "nist", "mat5", "m4a"])
def test_sounds(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "m4a":
        write_sound(path, tone(0.5, 44100), 44100, "aac")
    else:
        soundfile.write(path, tone(0.5, 8000), 8000)
    assert survives(load_audio, path.read_bytes())


@pytest.mark.parametrize(
    "name, codec", [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.webm", "libvpx"), ("v.avi", "mpeg4")]
)
def test_videos(tmp_path, name, codec):
    assert survives(load_video, write_video(tmp_path / name, codec=codec, frames=12, sound=False).read_bytes())


def test_first_bytes_alone(tmp_path):
    for start in (b"RIFF", b"FORM\0", b"\x1a\x45\xdf\xa3", b"OggS", b"ID3", b"GIF8", b"\0\0\0\x18ftyp", b"\xff\xfb"):
        for load in (load_image, load_audio, load_video):
            with pytest.raises(OmniError):
                load(start)

"""Pictures of every mode, and damaged ones."""

import io

import numpy as np
import pytest
from PIL import Image

from ms_omni.errors import MediaError
from ms_omni.input.image import image_size, resize_frame, smart_resize, video_size
from ms_omni.input.media import SizeOptions, limits
from ms_omni.media import load_image
from tests.input.make_files import cut

COLOUR = (200, 100, 50)


def picture(width=60, height=40):
    return Image.new("RGB", (width, height), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif", "qoi"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    picture().save(path)
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (60, 40)
    np.testing.assert_allclose(image.getpixel((30, 20)), COLOUR, atol=4)


def test_wrong_extension_is_read_by_content(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").getpixel((0, 0)) == COLOUR


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr", "LA", "PA", "I", "1"])
def test_modes_become_rgb(mode):
    image = load_image(picture().convert(mode))
    assert image.mode == "RGB"
    if mode in ("P", "CMYK", "YCbCr", "PA"):
        np.testing.assert_allclose(image.getpixel((5, 5)), COLOUR, atol=60 if mode in ("P", "PA") else 3)
    elif mode != "1":
        np.testing.assert_allclose(image.getpixel((5, 5)), [124] * 3, atol=1)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png").getpixel((1, 1)) == (117, 117, 117)


def test_transparency_is_laid_on_white(tmp_path):
    half = picture().convert("RGBA")
    half.putalpha(128)
    np.testing.assert_allclose(load_image(half).getpixel((0, 0)), (227, 177, 152), atol=1)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "clear.png", transparency=0)
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path):
    image = picture()
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    turned = load_image(tmp_path / "turned.png")
    assert turned.size == (40, 60) and turned.getpixel((39, 0)) == (0, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "tiff", "qoi"])
@pytest.mark.parametrize("share", [0.4, 0.97])
def test_cut_files_are_refused(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    path = tmp_path / f"noise.{suffix}"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    with pytest.raises(MediaError, match="damaged"):
        load_image(cut(path, share))


def test_floating_point_picture_is_refused():
    with pytest.raises(MediaError, match="floating point"):
        load_image(picture().convert("F"))


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 5), 7, np.uint8),
        np.full((4, 5, 3), 7, np.uint8),
        np.full((3, 4, 5), 7, np.uint8),
        np.full((4, 5, 1), 7.0, np.float32),
    ],
)
def test_arrays(array):
    image = load_image(array)
    assert image.size == (5, 4) and image.getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    "array, complaint",
    [
        (np.zeros((5, 6, 2), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "shape"),
        (np.zeros(5, np.uint8), "shape"),
        (np.full((4, 5, 3), 300), "300"),
        (np.full((4, 5, 3), 0.5), "Multiply by 255"),
        (np.full((4, 5, 3), np.nan), "nan"),
        (np.zeros((4, 5), complex), "type"),
    ],
)
def test_arrays_that_cannot_be_pictures(array, complaint):
    with pytest.raises(MediaError, match=complaint):
        load_image(array)


def test_not_a_picture(tmp_path):
    (tmp_path / "song.jpg").write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    with pytest.raises(MediaError, match="looks like WAV sound"):
        load_image(tmp_path / "song.jpg")
    with pytest.raises(MediaError, match="give a path"):
        load_image(12)


def test_bytes_and_open_files():
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    assert load_image(buffer.getvalue()).getpixel((0, 0)) == COLOUR
    assert load_image(io.BytesIO(buffer.getvalue())).getpixel((0, 0)) == COLOUR


@pytest.mark.parametrize(
    "size, expected",
    [
        ((100, 150), (96, 160)),
        ((1, 1), (64, 64)),
        ((48, 80), (64, 64)),
        ((20, 31), (64, 96)),
        ((10, 1000), (32, 576)),
        ((3, 600), (32, 800)),
        ((5000, 5000), (3552, 3552)),
        ((1, 200), (32, 800)),
    ],
)
def test_smart_resize(size, expected):
    assert smart_resize(*size, 32, 3136, 12845056) == expected


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 201)])
def test_thin_strips_are_refused(size):
    with pytest.raises(MediaError, match="at most 200 times"):
        smart_resize(*size, 32, 3136, 12845056)


def test_long_videos_share_a_budget():
    few = video_size(300, 1080, 1920, 32, 131072, 786432, SizeOptions(), "video")
    many = video_size(768, 1080, 1920, 32, 131072, 786432, SizeOptions(), "video")
    assert few[0] * few[1] <= 786432 and many[0] * many[1] <= 128000 * 0.9 * 1024 / 768 * 2 < few[0] * few[1]


def test_size_options():
    assert video_size(4, 480, 640, 32, 131072, 786432, SizeOptions(max_pixels=40000), "video") == (160, 224)
    assert video_size(4, 480, 640, 32, 131072, 786432, SizeOptions(resized_height=400, resized_width=400), "v") == (
        384,
        384,
    )
    low_budget = video_size(4, 480, 640, 32, 131072, 786432, SizeOptions(total_pixels=1.0), "video")
    assert low_budget[0] * low_budget[1] <= int(131072 * 1.05)


def test_resize_keeps_constant_pictures_and_types():
    frame = np.full((3, 50, 70), 91, np.uint8)
    assert (resize_frame(frame, 96, 32) == 91).all() and resize_frame(frame, 96, 32).dtype == np.uint8
    np.testing.assert_allclose(resize_frame(frame.astype(np.float32), 96, 32), 91, rtol=1e-5)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch, tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(limits, "picture_pixels", 2999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(MediaError, match=r"large.png has 60 x 50 pixels; at most 2,999 are taken"):
        load_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    "error, words",
    [
        (Image.DecompressionBombError("179 million"), "too many pixels; at most"),
        (MemoryError(), "not enough memory"),
        (OSError("image file is truncated (3 bytes not processed)"), "cut short or damaged"),
        (OSError("decoder jpeg2k not available"), "of a kind that Pillow .* does not read here"),
        (NotImplementedError("Unimplemented pixel format 9"), "Save it as PNG or JPEG"),
        (ValueError("bad marker"), "cannot be decoded .*if not, it is damaged"),
    ],
)
def test_the_reason_is_the_true_one(monkeypatch, tmp_path, error, words):
    Image.new("RGB", (60, 50)).save(tmp_path / "i.png")

    def fail(self):
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MediaError, match=words):
        load_image(tmp_path / "i.png")


@pytest.mark.parametrize(
    "options",
    [
        SizeOptions(max_pixels=10**15, resized_height=10**6, resized_width=10**6),
        SizeOptions(min_pixels=10**12, max_pixels=10**15),
    ],
)
def test_what_would_become_huge_is_refused(options):
    with pytest.raises(MediaError, match="at most 33,554,432 are taken"):
        image_size(60, 50, 32, 1, 10**6, options, "v")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC picture, a format that is not read here"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture, but of a kind that is not read here, or its header is damaged"),
        (b"<!DOCTYPE html><html><body>404</body></html>", r"a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"ID3\4" + bytes(99), "give it as an audio item"),
        (bytes(400), "nothing but zeros"),
    ],
)
def test_what_a_file_is_instead_of_a_picture_is_said(content, said):
    with pytest.raises(MediaError, match=said):
        load_image(content)

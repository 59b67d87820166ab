"""Pictures of every usual mode to upright 8-bit RGB."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, BinaryIO, cast

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ms_omni.arrays import to_array
from ms_omni.errors import MediaError
from ms_omni.input.inline import ACCEPTED, DICT_ACCEPTED
from ms_omni.input.integrity import describe
from ms_omni.input.limits import limits

IMAGE_ACCEPTED = f"{ACCEPTED}, a PIL image, an array [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, or a dict with {DICT_ACCEPTED}"


def decode_image(value: Any, name: str) -> Image.Image:
    """An open file, an array or a picture of Pillow's as an upright RGB image; see `load.load_image`."""
    if isinstance(value, io.IOBase):
        return _upright(_opened(cast("BinaryIO", value), name), name)
    if isinstance(value, Image.Image):
        return _upright(value, name)
    array = to_array(value)
    if array is None:
        raise MediaError(f"{name} is a {type(value).__name__}; give {IMAGE_ACCEPTED}.")
    return _from_array(array, name)


def _opened(file: BinaryIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
            return Image.open(file)
    except UnidentifiedImageError as error:
        raise MediaError(f"{name} cannot be read as a picture: {_unknown(describe(file))}.") from error
    except Exception as error:  # Pillow's plugins raise many kinds on damaged headers
        raise MediaError(_reason(error, name, "a picture")) from error


def _unknown(known: str) -> str:
    """What to say of a file that Pillow does not know, by what it looks like."""
    if any(word in known for word in ("HEI", "AVIF", "XL", "raw")):
        return f"{known}, a format that is not read here; convert it to PNG or JPEG"
    if "picture" in known:
        return f"{known}, but of a kind that is not read here, or its header is damaged; save it anew as PNG or JPEG"
    kinds = [item for item, word in (("an audio", "sound"), ("a video", "video")) if word in known]
    return f"{known}; give it as {kinds[0]} item" if kinds else known


def _upright(image: Image.Image, name: str) -> Image.Image:
    if image.format == "EPS":  # Pillow would hand it to another program, Ghostscript, which runs what is in it
        raise MediaError(f"{name} is PostScript, a program that draws; convert it to PNG first.")
    if 0 in image.size:
        raise MediaError(f"{name} has no pixels ({image.width} x {image.height}).")
    if image.width * image.height > limits.picture_pixels:
        raise MediaError(f"{name} has {image.width} x {image.height} pixels; {_at_most()}")
    try:
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1  # else the picture would be copied
        return to_rgb(ImageOps.exif_transpose(image) if turned else image, name)
    except MediaError:
        raise
    except Exception as error:  # OSError for cut files, but also SyntaxError, struct.error, ... from single plugins
        raise MediaError(_reason(error, name, f"a {image.format or 'raw'} picture")) from error


def _at_most() -> str:
    return (
        f"at most {limits.picture_pixels:,} are taken (ms_omni.media.limits.picture_pixels). Give a smaller copy: the model sees "
        "pictures shrunk anyway."
    )


def _reason(error: Exception, name: str, what: str) -> str:
    """Why Pillow could not decode, and what helps: not all of it is damage."""
    said = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"{name} has too many pixels; {_at_most()}"
    if isinstance(error, MemoryError):
        return f"{name} cannot be decoded: there is not enough memory for its pixels. Give a smaller copy."
    if "truncated" in said.lower():
        return f"{name} is cut short or damaged: {said}. Copy or download it again."
    if isinstance(error, NotImplementedError) or re.search(
        r"unsupported|not supported|not available|unknown|no .*support", said, re.I
    ):
        return (
            f"{name} is {what} of a kind that Pillow {PIL.__version__} does not read here: {said}. Save it as PNG or JPEG."
        )
    return f"{name} cannot be decoded as {what}: {said}. If other programs show it, save it as PNG; if not, it is damaged."


def to_rgb(image: Image.Image, name: str = "picture") -> Image.Image:
    """Convert any mode to RGB without a silent loss: alpha on white, 16-bit grey scaled.

    Raises:
        MediaError: floating point pixels, or integer pixels beyond 16 bits.
    """
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if image.mode == "F":
        raise MediaError(f"{name} has floating point pixels, whose range is not known; convert it to 8 bits first.")
    if image.mode.startswith("I"):
        image = _grey16_to_grey8(image, name)
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, (255, 255, 255))
        background.paste(image, mask=image.getchannel("A"))
        return background
    return image.convert("RGB")


def _grey16_to_grey8(image: Image.Image, name: str) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion would clip, and so make such pictures white."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if image.mode == "I" and low >= 0 and high <= 255:  # 8-bit values held as 32-bit integers
        return Image.fromarray(values.astype(np.uint8))
    if low < 0 or high > 65535:
        raise MediaError(f"{name} has integer pixels from {low} to {high}; at most 16 bits are understood.")
    scaled = np.empty(values.shape, np.uint8)
    for row, out in zip(values, scaled):  # row by row: of a large picture no copy in wide integers is made
        out[:] = (row.astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """`[H, W]`, `[H, W, C]` or `[C, H, W]` to RGB; uint8, or floats that hold whole 0..255 steps.

    Raises:
        MediaError: wrong shape or type, values outside 0..255, or floats in 0..1 (their scale would be a guess).
    """
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; expected [H, W], [H, W, C] or [C, H, W] "
            "with 1, 3 or 4 channels."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(to_bytes(array, name))), name)


def to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Pixel values as uint8; see `_from_array` for what is refused."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise MediaError(f"{name} has values of type {array.dtype}; expected uint8, or numbers from 0 to 255.")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise MediaError(f"{name} has values from {low} to {high}; expected 0 to 255.")
    if array.dtype.kind == "f" and 0 < high <= 1:
        raise MediaError(f"{name} has floating point values up to {high}; expected 0 to 255. Multiply by 255 first.")
    return np.rint(array).astype(np.uint8)

"""Pictures of every usual mode to upright 8-bit RGB; target sizes of pictures and video frames, and the resampling to them."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ms_omni.arrays import to_array
from ms_omni.errors import InputError, MediaError
from ms_omni.input.integrity import describe
from ms_omni.input.media import Media, SizeOptions, limits
from ms_omni.input.sources import ACCEPTED, DICT_ACCEPTED

MAX_ASPECT_RATIO = 200
VIDEO_MIN_PIXELS = 128 * 32 * 32  # per frame
VIDEO_MAX_PIXELS = 768 * 32 * 32
VIDEO_TOKEN_BUDGET = 128000 * 0.9  # tokens of a whole video, each factor x factor pixels of two frames
SizeRule = Callable[[int, int, int, SizeOptions, str], tuple[int, int]]  # frames, height, width, options, name -> size
_BAND = 1 << 22  # values
_BLOCK = 32  # output samples per matrix product: keeps the products narrow around the band of non-zero weights
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
    """Describe a file that Pillow does not know, by what it looks like."""
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
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1  # else the picture would be copied
        return to_rgb(ImageOps.exif_transpose(image) if rotated else image, name)
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
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"{name} has too many pixels; {_at_most()}"
    if isinstance(error, MemoryError):
        return f"{name} cannot be decoded: there is not enough memory for its pixels. Give a smaller copy."
    if "truncated" in reason.lower():
        return f"{name} is cut short or damaged: {reason}. Copy or download it again."
    if isinstance(error, NotImplementedError) or re.search(
        r"unsupported|not supported|not available|unknown|no .*support", reason, re.I
    ):
        return (
            f"{name} is {what} of a kind that Pillow {PIL.__version__} does not read here: {reason}. Save it as PNG or JPEG."
        )
    return f"{name} cannot be decoded as {what}: {reason}. If other programs show it, save it as PNG; if not, it is damaged."


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
    for row, out in zip(values, scaled):  # row by row, to avoid a copy of a large picture in wide integers
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


class PixelLimits(MutableMapping):
    """The `size` of transformers' image processors: a view of its owner's `min_pixels` and `max_pixels`."""

    NAMES: ClassVar[dict[str, str]] = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}

    __slots__ = ("_owner",)

    def __init__(self, owner: Any) -> None:
        object.__setattr__(self, "_owner", owner)

    def __getattr__(self, name: str) -> int:  # as transformers 5.x reads them
        if name in self.NAMES:
            return self[name]
        raise AttributeError(f"size has no {name!r}; it has {', '.join(self.NAMES)}.")

    def __setattr__(self, name: str, value: int) -> None:
        self[name] = value

    def __getitem__(self, key: str) -> int:
        return getattr(self._owner, self.NAMES[key])

    def __setitem__(self, key: str, value: int) -> None:
        setattr(self._owner, _limit_name(key, "size", InputError), value)

    def __delitem__(self, key: str) -> None:
        raise InputError(f"size needs both {' and '.join(self.NAMES)}; set another value instead of deleting {key!r}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)

    def __repr__(self) -> str:
        return repr(dict(self))


def pixel_limits(size: Any, where: str, error: type[Exception]) -> dict[str, int]:
    """min_pixels and max_pixels from a `size` in one of its two spellings."""
    size = vars(size) if hasattr(size, "shortest_edge") else size  # transformers' SizeDict
    if not isinstance(size, Mapping):
        raise error(f"{where}: size is {size!r}; expected shortest_edge and longest_edge (areas in pixels).")
    return {_limit_name(key, where, error): value for key, value in size.items() if value is not None}


def _limit_name(key: str, where: str, error: type[Exception]) -> str:
    name = PixelLimits.NAMES.get(key, key)
    if name not in PixelLimits.NAMES.values():
        raise error(f"{where}: size is {key!r}; expected shortest_edge and longest_edge (areas in pixels).")
    return name


def smart_resize(
    height: int,
    width: int,
    factor: int,
    min_pixels: float,
    max_pixels: float,
    name: str = "The picture",
    least: int = 0,
) -> tuple[int, int]:
    """Height and width as multiples of `factor`, with an area within the limits and about the same aspect ratio.

    As in transformers' Qwen2-VL processors, including that a side under half a factor counts as zero at first, so that
    a thin strip is enlarged to `min_pixels`; qwen_omni_utils counts it as `least` = `factor`.

    Raises:
        MediaError: one side is more than 200 times the other, or the result is over `limits.resized_pixels`.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"{name} is {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the "
            "other. Crop or pad it."
        )
    new_height, new_width = (max(least, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    new_height, new_width = max(factor, new_height), max(factor, new_width)
    if new_height * new_width > limits.resized_pixels:
        raise MediaError(
            f"{name} would be enlarged or shrunk to {new_width} x {new_height} pixels; at most {limits.resized_pixels:,} are taken "
            "(ms_omni.media.limits.resized_pixels). Lower max_pixels, min_pixels, or resized_height and resized_width."
        )
    return new_height, new_width


def image_size(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int, options: SizeOptions, name: str
) -> tuple[int, int]:
    """Target size of a picture: the item's own options win over the settings `min_pixels` and `max_pixels`."""
    if options.resized_height is not None and options.resized_width is not None:
        height, width = options.resized_height, options.resized_width
    low, high = _limits(options, min_pixels, max_pixels)
    return smart_resize(height, width, factor, low, high, name)


def video_size(
    frames: int, height: int, width: int, factor: int, min_pixels: int, max_pixels: int, options: SizeOptions, name: str
) -> tuple[int, int]:
    """Target size of a video's frames, so that the whole video also stays within its budget."""
    if options.resized_height is not None and options.resized_width is not None:
        height, width = options.resized_height, options.resized_width
    low, high = _limits(options, min_pixels, max_pixels)
    budget = options.total_pixels if options.total_pixels is not None else VIDEO_TOKEN_BUDGET * factor * factor
    high = min(high, max(budget / frames * 2, int(low * 1.05)))
    return smart_resize(height, width, factor, low, high, name)


def default_video_size(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
    """`video_size` under the published settings."""
    return video_size(frames, height, width, 32, VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS, options, name)


def _limits(options: SizeOptions, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The item's limits; one that is given alone lifts the other where they would cross."""
    low = options.min_pixels if options.min_pixels is not None else min_pixels
    if options.min_pixels is None and options.max_pixels is not None and options.max_pixels < low:
        low = 1
    high = options.max_pixels if options.max_pixels is not None else max(max_pixels, low)
    return low, high


@lru_cache(maxsize=64)
def _weight_blocks(length: int, new_length: int, quantised: bool) -> list[tuple[slice, slice, np.ndarray]]:
    """Antialiased bicubic (a = -0.5) with normalised weights, as torchvision's, without most of the zeros.

    Returns:
        input samples, output samples, and the float32 weights `[inputs, outputs]` between them; quantised as torchvision's
        16-bit integers, so that sums over bytes come out alike.
    """
    scale = length / new_length
    stretch = max(scale, 1.0)
    centres = (np.arange(new_length) + 0.5) * scale
    first = np.maximum(np.floor(centres - 2.0 * stretch + 0.5), 0)
    last = np.minimum(np.floor(centres + 2.0 * stretch + 0.5), length)
    blocks = []
    for start in range(0, new_length, _BLOCK):
        outputs = slice(start, min(start + _BLOCK, new_length))
        inputs = slice(int(first[outputs].min()), int(last[outputs].max()))
        positions = np.arange(inputs.start, inputs.stop)[:, None]
        distance = np.abs((positions + 0.5 - centres[outputs]) / stretch)
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weights = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
        weights *= (positions >= first[outputs]) & (positions < last[outputs])
        blocks.append((inputs, outputs, weights / weights.sum(0)))
    if quantised:
        largest = max(weights.max() for _, _, weights in blocks)
        bits = next(bits for bits in range(23) if bits == 22 or int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15)
        blocks = [
            (inputs, outputs, np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)) / (1 << bits))
            for inputs, outputs, weights in blocks
        ]
    return [(inputs, outputs, weights.astype(np.float32)) for inputs, outputs, weights in blocks]


def resized(media: Media, rule: SizeRule) -> Media:
    """The picture or video with its frames at the size that `rule` says."""
    if media.sized:
        return media
    count, _, height, width = media.data.shape
    size = rule(count, height, width, media.sizes, media.name)
    if size == (height, width):
        return replace(media, sized=True)
    return replace(media, data=np.stack([resize_frame(frame, *size) for frame in media.data]), sized=True)


def resize_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample one frame `[C, H, W]` to `[C, height, width]`; width first, then height.

    uint8 stays uint8, rounded after each pass as torchvision does; float32 is neither rounded nor clipped.
    """
    wide = _resample_bands(frame, width)
    return np.ascontiguousarray(_resample_bands(wide.swapaxes(1, 2), height).swapaxes(1, 2))


def _resample_bands(frame: np.ndarray, new_length: int) -> np.ndarray:
    """`[C, R, L]` to `[C, R, new_length]`, in bands of rows, so that a large picture is never whole in float32."""
    if new_length == frame.shape[2]:
        return frame
    as_bytes = frame.dtype == np.uint8
    out = np.empty((*frame.shape[:2], new_length), np.uint8 if as_bytes else np.float32)
    rows = max(1, _BAND // frame[:, 0].size)
    for top in range(0, frame.shape[1], rows):
        band = np.ascontiguousarray(frame[:, top : top + rows], np.float32)
        values = np.empty((*band.shape[:2], new_length), np.float32)
        for inputs, outputs, weights in _weight_blocks(frame.shape[2], new_length, as_bytes):
            np.matmul(band[..., inputs], weights, out=values[..., outputs])
        if as_bytes:
            values += 0.5
            np.clip(np.floor(values, out=values), 0, 255, out=values)
        out[:, top : top + rows] = values
    return out

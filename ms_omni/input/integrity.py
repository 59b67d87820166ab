"""Is the file whole? Containers say how long they are; decoders often return what is left of a cut file without a word.

Checked here, from the container's own structure and before any decoding: RIFF (WAV, AVI), AIFF, ISO media (MP4, MOV,
M4A), Matroska and WebM, Ogg, MP3 with a length header, GIF. FLAC is left to its decoder, which knows the length.
What declares no length cannot be told from a whole file and is taken as it is: MPEG-TS, FLV, raw streams, MP3 without a
length header, and Ogg or live Matroska that was stopped between two pages or clusters.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from ms_omni.errors import MediaError
from ms_omni.input.sources import Source

_UNKNOWN_RIFF_SIZE = 0x7FFFF000  # writers to a pipe leave 0, 0x7fffffff or 0xffffffff minus a header
_OGG_TAIL_BYTES = 1 << 17  # a page is at most 65,307 bytes


def sniff(head: bytes) -> str | None:
    """What the first bytes say the file is, in words, or None when they say nothing known."""
    signatures = (
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x89PNG", "a PNG picture"),
        (b"GIF8", "a GIF picture"),
        (b"BM", "a BMP picture"),
        (b"II*\0", "a TIFF picture"),
        (b"MM\0*", "a TIFF picture"),
        (b"fLaC", "FLAC sound"),
        (b"ID3", "MP3 sound"),
        (b"OggS", "an Ogg file"),
        (b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
        (b"%PDF", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"<svg", "an SVG drawing"),
        (b"<?xml", "an XML text"),
        (b"<!DOCTYPE", "a web page"),
        (b"<html", "a web page"),
        (b"#EXTM3U", "a playlist"),
    )
    if head[:4] == b"RIFF":
        return {b"WAVE": "WAV sound", b"AVI ": "an AVI video", b"WEBP": "a WebP picture"}.get(head[8:12], "a RIFF file")
    if head[4:8] == b"ftyp":
        return "an MP4 file"
    if head[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"):
        return "MP3 sound"
    return next((words for signature, words in signatures if head.startswith(signature)), None)


def describe(source: Source) -> str:
    """Half a sentence for error messages: what the content looks like."""
    with source.open() as file:
        looks_like = sniff(file.read(64))
    return f"its content looks like {looks_like}" if looks_like else "its content is of no known kind"


def check_whole(source: Source) -> None:
    """Raise when the container declares more bytes than there are.

    Raises:
        MediaError: the file is cut short.
    """
    size = source.size_bytes()
    with source.open() as file:
        head = file.read(12)
        if len(head) < 12:
            missing = 0  # too short for any header: the decoder will say so
        elif head[:4] == b"RIFF":
            missing = _riff_missing(file, head, size)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            missing = _iso_missing(file, size)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            missing = _matroska_missing(file, size)
        elif head[:4] == b"OggS":
            missing = _ogg_missing(file, size)
        elif head[:4] == b"FORM":
            missing = struct.unpack(">I", head[4:8])[0] + 8 - size
        elif head[:4] == b"GIF8":
            missing = _gif_missing(file, size)
        elif head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe2"):  # MPEG sound: eleven sync bits
            missing = _mp3_missing(file, size)
        else:
            missing = 0
    if missing > 0:
        raise MediaError(
            f"{source.name} is cut short: its container declares {missing} bytes more than the {size} "
            "there are. Copy or download it again."
        )


def _riff_missing(file: BinaryIO, head: bytes, size: int) -> int:
    """Bytes that the RIFF header (AVI) or the data chunk (WAV) declares beyond the end."""
    declared = struct.unpack("<I", head[4:8])[0]
    if head[8:12] != b"WAVE":
        return 0 if not 0 < declared < _UNKNOWN_RIFF_SIZE else declared + 8 - size
    position = 12
    while position + 8 <= size:  # the RIFF size itself is often wrong in WAV files; the data chunk decides
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            return 0 if length >= _UNKNOWN_RIFF_SIZE else position + 8 + length - size
        position += 8 + length + length % 2
    return position - size if position > size + 1 else 0


def _iso_missing(file: BinaryIO, size: int) -> int:
    """Bytes by which the last top-level box reaches beyond the end; the decoder reports a missing index (moov)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            raw = file.read(8)
            length = struct.unpack(">Q", raw)[0] if len(raw) == 8 else 0
        if length == 0:  # up to the end of the file
            return 0
        if length < 8 or not kind.isascii():  # padding after the last box
            return 0
        position += length
    return position - size


def _matroska_missing(file: BinaryIO, size: int) -> int:
    """Bytes by which the Segment reaches beyond the end; live streams declare no size."""
    file.seek(0)
    _, header_size, _ = _ebml_element(file)
    if header_size is None:
        return 0
    file.seek(header_size, 1)
    identifier, segment_size, _ = _ebml_element(file)
    if identifier != 0x18538067 or segment_size is None:
        return 0
    return file.tell() + segment_size - size


def _ebml_element(file: BinaryIO) -> tuple[int | None, int | None, int]:
    """Identifier and size (None: unknown) of the element at the file's position."""
    identifier, _ = _ebml_number(file, keep_marker=True)
    length, width = _ebml_number(file, keep_marker=False)
    if length is None or length == (1 << (7 * width)) - 1:
        return identifier, None, width
    return identifier, length, width


def _ebml_number(file: BinaryIO, keep_marker: bool) -> tuple[int | None, int]:
    first = file.read(1)
    if not first or first[0] == 0:
        return None, 0
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) != width - 1:
        return None, 0
    value = first[0] if keep_marker else first[0] & ((1 << (8 - width)) - 1)
    return int.from_bytes(bytes([value]) + rest, "big"), width


def _ogg_missing(file: BinaryIO, size: int) -> int:
    """Bytes by which the last page reaches beyond the end."""
    start = max(0, size - _OGG_TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return 0
    page = tail[at:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return 27 + (page[26] if len(page) > 26 else 0) - len(page)
    return 27 + page[26] + sum(page[27 : 27 + page[26]]) - len(page)


def _gif_missing(file: BinaryIO, size: int) -> int:
    """1 when the closing byte of a GIF is not there (zeros after it are padding)."""
    file.seek(max(0, size - 64))
    return 0 if file.read().rstrip(b"\0").endswith(b";") else 1


def _mp3_missing(file: BinaryIO, size: int) -> int:
    """Bytes that the length header (Xing, Info) in the first frame declares beyond the end; 0 without such a header."""
    file.seek(0)
    head = file.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:  # a tag in front, its size in four groups of seven bits
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
    file.seek(start)
    frame = file.read(256)
    at = max(frame.find(b"Xing", 4), frame.find(b"Info", 4))
    if at < 0 or len(frame) < at + 16:
        return 0
    flags = struct.unpack(">I", frame[at + 4 : at + 8])[0]
    if not flags & 2:  # no byte count
        return 0
    place = at + 8 + (4 if flags & 1 else 0)
    return start + struct.unpack(">I", frame[place : place + 4])[0] - size

"""What a file is, and whether it is whole. Containers say how long they are; decoders often return what is left of a cut file without
an error.

Checked here, from the container's own structure and before any decoding: RIFF (WAV, AVI), Wave64, AIFF and 8SVX, AU, CAF, VOC, DSF,
SoX, ASF (WMA), RealMedia, ISO media (MP4, MOV, M4A), Matroska and WebM, Ogg, GIF. `declared_frames` is for sounds whose headers count
samples where the decoder does not heed them (NIST SPHERE, MAT, AVR, MPC2K, WVE). FLAC, MP3 and others are left to the decoder, which
sees whether the last frame is whole: where it is, a header that declares more is wrong.
Files without a declared length cannot be distinguished from whole ones and are taken as they are: MPEG-TS, FLV, NUT, raw streams (AC-3,
DTS, AMR, GSM, MP2, ...), SWF, IRCAM, PVF and PAF, MP3 without a length header, Ogg, VOC or live Matroska that was stopped between two
pages, blocks or clusters, and what was written into a pipe with a length of 0 or the largest number.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from ms_omni.errors import MediaError

_UNKNOWN_RIFF_SIZE = 0x7FFFF000  # writers to a pipe leave 0, 0x7fffffff or 0xffffffff minus a header
_UNKNOWN_IFF_SIZES = (0x7F00, 0x7FFF, 0xFFFF)  # the upper halves of those that they leave in AIFF, with 0
_UNKNOWN_SIZE = 1 << 60  # of 64 bits
_MISCOUNT_BYTES = 64  # a size that counts the header as content, or a lost byte, is no cut
_OGG_TAIL_BYTES = 1 << 17  # a page is at most 65,307 bytes
_HEAD_BYTES = 512
_MOOV_BYTES = 1 << 24
_SIGNATURES = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"qoif", "a QOI picture"),
    (b"8BPS", "a Photoshop picture"),
    (b"\0\0\1\0", "an ICO picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"fLaC", "FLAC sound"),
    (b"ID3", "MP3 sound"),
    (b"OggS", "an Ogg file"),
    (b"caff", "CAF sound"),
    (b"FORM", "an IFF file (AIFF sound or the like)"),
    (b".snd", "AU sound"),
    (b"wvpk", "WavPack sound"),
    (b"MAC ", "Monkey's Audio sound"),
    (b"#!AMR", "AMR sound"),
    (b"MThd", "MIDI, which holds notes only"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (b"\x30\x26\xb2\x75", "Windows Media (ASF)"),
    (b"FLV\1", "a Flash video"),
    (b"\0\0\1\xba", "an MPEG program stream"),
    (b"RF64", "WAV sound (RF64)"),
    (b"riff", "WAV sound (Wave64)"),
    (b"%PDF", "a PDF document"),
    (b"PK\3\4", "a ZIP archive (also Office documents are)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x93NUMPY", "a NumPy file; load it and give the array"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_TEXTS = (
    ("<!doctype html", "a web page (HTML); the address or download did not lead to the file itself"),
    ("<html", "a web page (HTML); the address or download did not lead to the file itself"),
    ("<svg", "an SVG drawing"),
    ("<?xml", "an XML text"),
    ("version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
    ("#extm3u", "a playlist; give the file that it names"),
    ("[playlist]", "a playlist; give the file that it names"),
    ("ffconcat", "a playlist; give the files that it names"),
    ("{", "a JSON text"),
)
_BRANDS = {
    b"qt  ": "a QuickTime file",
    b"M4A ": "MPEG-4 sound (M4A)",
    b"M4B ": "MPEG-4 sound (M4B)",
    b"heic": "a HEIC picture",
    b"heix": "a HEIC picture",
    b"mif1": "a HEIF picture",
    b"msf1": "a HEIF picture",
    b"avif": "an AVIF picture",
    b"avis": "an AVIF picture",
    b"crx ": "a Canon raw picture",
    b"aax ": "an Audible book, which is encrypted",
    b"aaxc": "an Audible book, which is encrypted",
}


def sniff(head: bytes) -> str | None:
    """What the first bytes say the file is, in words, or None when they say nothing known."""
    if head[:4] == b"RIFF":
        return {b"WAVE": "WAV sound", b"AVI ": "an AVI video", b"WEBP": "a WebP picture"}.get(head[8:12], "a RIFF file")
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a 3GP file" if head[8:10] == b"3g" else "an MP4 file")
    if head[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"):
        return "MP3 sound"
    if head[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "AAC sound"
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return "an MPEG transport stream"
    if head and not head.strip(b"\0"):
        return "nothing but zeros"
    return next((words for signature, words in _SIGNATURES if head.startswith(signature)), None) or _as_text(head)


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEAD_BYTES else "ignore").strip()
    except UnicodeDecodeError:
        return None
    plain = all(letter.isprintable() or letter in "\r\n\t" for letter in text)
    if not text or not plain or len(text.encode()) < 0.9 * len(head.strip()) - 4:
        return None
    lower = text.lower()
    return next((words for start, words in _TEXTS if lower.startswith(start)), f"a text that begins with {text[:30]!r}")


def describe(file: BinaryIO) -> str:
    """Half a sentence for error messages: what the content looks like."""
    file.seek(0)
    looks_like = sniff(file.read(_HEAD_BYTES))
    return f"its content looks like {looks_like}" if looks_like else "its content is of no known kind"


def encryption(file: BinaryIO) -> str | None:
    """The protection that the track headers of an ISO media file name, or None."""
    for kind, start, length in _boxes(file, size_bytes(file)):
        if kind in (b"moov", b"ftyp"):
            file.seek(start)
            content = file.read(min(length, _MOOV_BYTES))
            for mark, words in ((b"encv", "DRM"), (b"enca", "DRM"), (b"drm", "FairPlay DRM"), (b"aavd", "Audible DRM")):
                if mark in content:
                    return words
    return None


def mp3_declares_length(file: BinaryIO) -> bool:
    """Whether the first frame of an MP3 file says how many follow (Xing, Info, VBRI); else FFmpeg estimates the length."""
    file.seek(0)
    head = file.read(10)
    tag = head[:3] == b"ID3" and len(head) == 10  # a tag in front, its size in four groups of seven bits
    file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0))) if tag else 0)
    frame = file.read(256)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def is_mp3_frame_cut(frame: bytes) -> bool:
    """Whether an MPEG sound frame (layer III) is shorter than its header says; False for what is no such frame."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return False
    version = frame[1] >> 3 & 3  # 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5
    rate, rate_hz = frame[2] >> 4, frame[2] >> 2 & 3
    if rate in (0, 15) or rate_hz == 3 or version == 1:
        return False
    table = (*range(8, 57, 8), *range(64, 161, 16))
    if version == 3:
        table = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    hz = (44100, 48000, 32000)[rate_hz] >> {3: 0, 2: 1, 0: 2}[version]
    return len(frame) < (144 if version == 3 else 72) * 1000 * table[rate - 1] // hz + (frame[2] >> 1 & 1)


def size_bytes(file: BinaryIO) -> int:
    """Of the whole file; its position is then the end."""
    return file.seek(0, io.SEEK_END)


def check_whole(file: BinaryIO, name: str) -> bytes:
    """The file's first 12 bytes; raises when the container declares more bytes than there are.

    Raises:
        MediaError: the file is cut short.
    """
    size = size_bytes(file)
    file.seek(0)
    head = file.read(12)
    start = head[:4]
    if len(head) < 12:
        missing = 0  # too short for any header: the decoder will say so
    elif start in (b"RIFF", b"RF64", b"BW64"):
        missing = _riff_missing(file, head, size)
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        missing = _iso_missing(file, size)
    elif start == b"\x1a\x45\xdf\xa3":
        missing = _matroska_missing(file, size)
    elif start == b"OggS":
        missing = _ogg_missing(file, size)
    elif start == b"caff":
        missing = _chunks_missing(file, size, 8, ">4xQ", 12)
    elif start == b".RMF":
        missing = _chunks_missing(file, size, 0, ">4xI")
    elif start == b"\x30\x26\xb2\x75":
        missing = _chunks_missing(file, size, 0, "<16xQ27x")  # a broadcast declares only the 50 bytes before its packets
    elif head == b"Creative Voi":
        missing = _voc_missing(file, size)
    elif start == b"GIF8":
        missing = _gif_missing(file, size)
    else:
        missing = _declared_end(head + file.read(28)) - size
        missing = missing if missing > _MISCOUNT_BYTES else 0
    if missing > 0:
        raise MediaError(
            f"{name} is cut short: its container declares {missing} bytes more than the {size} "
            "there are. Copy or download it again."
        )
    return head


def _riff_missing(file: BinaryIO, head: bytes, size: int) -> int:
    """Bytes that the RIFF header (AVI) or the data chunk (WAV) declares beyond the end."""
    declared = struct.unpack("<I", head[4:8])[0]
    if head[8:12] != b"WAVE":
        missing = 0 if not 0 < declared < _UNKNOWN_RIFF_SIZE else declared + 8 - size
        return missing if missing > _MISCOUNT_BYTES else 0
    position, wide = 12, None
    while position + 8 <= size:  # the RIFF size itself is often wrong in WAV files; the data chunk decides
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"ds64":  # of RF64: the sizes that do not fit in 32 bits
            raw = file.read(16)
            wide = struct.unpack("<8xQ", raw)[0] if len(raw) == 16 else None
        if kind == b"data":
            length = 0 if length >= _UNKNOWN_RIFF_SIZE and wide is None else wide or length
            missing = position + 8 + length - size
            return missing if missing > _MISCOUNT_BYTES and missing not in (position, position + 8) else 0
        position += 8 + length + length % 2
    return position - size if position > size + 1 else 0


def _declared_end(head: bytes) -> int:
    """Where a sound ends by the first 40 bytes of its header; 0 when they do not say it."""
    if len(head) < 40:
        return 0
    if head[:4] == b"FORM":
        length = struct.unpack(">4xI", head[:8])[0]
        return 8 + length if length >> 16 not in _UNKNOWN_IFF_SIZES else 0
    if head[:4] in (b".snd", b"dns."):
        start, length = struct.unpack(">4xII" if head[:1] == b"." else "<4xII", head[:12])
        return start + length if length < 0xFFFFFFFF else 0
    end = 0
    if head[:4] == b"riff":  # Wave64
        end = struct.unpack("<16xQ", head[:24])[0]
    elif head[:4] == b"DSD ":
        end = struct.unpack("<12xQ", head[:20])[0]
    elif head[:4] in (b".SoX", b"XoS."):
        header, samples = struct.unpack("<4xIQ" if head[:1] == b"." else ">4xIQ", head[:16])
        end = 4 + header + 4 * samples
    return end if end < _UNKNOWN_SIZE else 0


def _chunks_missing(file: BinaryIO, size: int, position: int, header: str, more: int = 0) -> int:
    """Bytes by which the last chunk from `position` on reaches beyond the end. The length in its header is of it all but `more` bytes."""
    width = struct.calcsize(header)
    while position + width <= size:
        file.seek(position)
        length = struct.unpack(header, file.read(width))[0] + more
        if not width <= length < _UNKNOWN_SIZE:  # up to the end of the file, or padding
            return 0
        position += length
    return position - size if position > size + _MISCOUNT_BYTES else 0


def _voc_missing(file: BinaryIO, size: int) -> int:
    """Bytes by which the last block of a VOC sound reaches beyond the end."""
    file.seek(20)
    position = int.from_bytes(file.read(2), "little")
    while position + 4 <= size:
        file.seek(position)
        block = file.read(4)
        if not block[0]:  # closes the sound
            return 0
        position += 4 + int.from_bytes(block[1:], "little")
    return max(0, position - size)


def declared_frames(file: BinaryIO, kind: str, channels: int) -> int:
    """How many samples of each channel the header declares, of those kinds (in libsndfile's words) whose decoder trusts the file's size; else 0."""
    file.seek(0)
    head = file.read(1 << 14)
    if kind == "NIST":
        stated = re.search(rb"sample_count -i (\d+)", head)
        return int(stated[1]) if stated else 0
    if kind in ("MAT4", "MAT5"):  # a matrix of channels by samples, both counts in front of its name
        at = head.find(b"wavedata") - 16
        shapes = [struct.unpack_from(order, head, at) for order in ("<II", ">II")] if at >= 0 else []
        return next((frames for rows, frames in shapes if rows == channels), 0)
    place = {"AVR": ">26xI", "MPC2K": "<30xI", "WVE": ">18xI"}.get(kind)
    return struct.unpack_from(place, head)[0] if place and len(head) > 40 else 0


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Top-level boxes of an ISO media file: kind, start of the content, its length as declared (0: up to the end of the file)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            raw = file.read(8)
            length, header = struct.unpack(">Q", raw)[0] if len(raw) == 8 else 0, 16
        if length == 0:
            length = size - position
        if length < header or not kind.isascii():  # padding after the last box
            return
        yield kind, position + header, length - header
        position += length


def _iso_missing(file: BinaryIO, size: int) -> int:
    """Bytes by which the last top-level box reaches beyond the end; the decoder reports a missing index (moov)."""
    end = 0
    for _, start, length in _boxes(file, size):
        end = start + length
    return end - size


def _matroska_missing(file: BinaryIO, size: int) -> int:
    """Bytes by which the Segment reaches beyond the end; live streams declare no size."""
    file.seek(0)
    _, header_size = _ebml_element(file)
    if header_size is None:
        return 0
    file.seek(header_size, 1)
    identifier, segment_size = _ebml_element(file)
    if identifier != 0x18538067 or segment_size is None:
        return 0
    return file.tell() + segment_size - size


def _ebml_element(file: BinaryIO) -> tuple[int | None, int | None]:
    """Identifier and size (None: unknown) of the element at the file's position."""
    identifier, _ = _ebml_number(file, keep_marker=True)
    length, width = _ebml_number(file, keep_marker=False)
    return identifier, None if length == (1 << (7 * width)) - 1 else length


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

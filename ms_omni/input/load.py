"""Media that conversations name: opened once and decoded by kind.

A medium may be a path, file://, http(s)://, data: URI, base64, bytes, an open file, or what is decoded already.
"""

from __future__ import annotations

import io
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from PIL import Image

from ms_omni.errors import InputError, MediaError
from ms_omni.files import open_regular, spooled
from ms_omni.input.access import SCHEMES, AccessPolicy, policy_in_force
from ms_omni.input.audio import decode_audio, decode_sound_track
from ms_omni.input.image import SizeRule, decode_image, resized
from ms_omni.input.media import ItemOptions, Media, SamplingOptions, SizeOptions
from ms_omni.input.messages import KINDS, Item, Message, read_batch, unwrapped
from ms_omni.input.sampling import per_video, with_frame_options
from ms_omni.input.sources import ACCEPTED, download, from_base64, from_data_uri, is_base64
from ms_omni.input.video import decode_video

_READ_BYTES = 1 << 20
_LONGEST_PATH = 1 << 15


def load_items(
    batch: Sequence[Sequence[Message]],
    use_audio_in_video: bool | Sequence[bool] = False,
    *,
    kinds: Sequence[str] = KINDS,
    sampling: SamplingOptions = SamplingOptions(),
    size_rule: SizeRule | None = None,
    picture_rule: SizeRule | None = None,
    video_metadata: Any = None,
) -> list[Media]:
    """Everything that a batch of conversations refers to, each video's sound track behind it.

    Args:
        batch: as `read_batch` returns it.
        use_audio_in_video: also load the sound tracks of the videos that have one; the others stay silent videos. One
            value for all conversations, or one for each.
        kinds: which kinds to load.
        sampling: for videos that do not say themselves.
        size_rule: see `load_video`; picture_rule: likewise for pictures, which else keep their size.
        video_metadata: fps and total_num_frames of videos that come as frames; one for all, or one for each video.

    Raises:
        InputError: an item without a medium, or another number of values than conversations; MediaError: one that cannot
            be read, or with which they are over `AccessPolicy.decoded_bytes`; its `where` says which.
    """
    several = isinstance(use_audio_in_video, (list, tuple, np.ndarray))
    flags: list[Any] = list(use_audio_in_video) if several else [use_audio_in_video] * len(batch)
    if not all(isinstance(flag, (bool, np.bool_)) or flag in (0, 1) for flag in flags):
        raise InputError(
            f"use_audio_in_video is {use_audio_in_video!r}; expected True or False, or one for each conversation."
        )
    if len(flags) != len(batch):
        raise InputError(
            f"use_audio_in_video has {len(flags)} values for {len(batch)} conversation(s); give one value, or one for each."
        )
    media: list[Media] = []
    total_bytes = 0
    for messages, use_audio in zip(batch, flags):
        for item in (item for message in messages for item in message.media):
            if item.value is None:
                raise InputError(
                    f"{item.where} names no {item.kind}; add one of the keys {item.kind}, {item.kind}_url, path or url."
                )
            try:
                decoded: list[Media] = []
                if item.kind == "video":
                    with_audio = bool(use_audio) and "audio" in kinds
                    decoded = load_item(item, sampling, size_rule, "video" in kinds, with_audio)
                elif item.kind in kinds:
                    decoded = load_item(item, size_rule=picture_rule)
                total_bytes += sum(medium.data.nbytes for medium in decoded)
                policy_in_force().check_decoded(total_bytes, item.where)
                media += decoded
            except MediaError as error:
                error.where = item.where
                raise
    metadata = iter(per_video(video_metadata, sum(medium.kind == "video" for medium in media), "video_metadata"))
    stated = [next(metadata) if medium.kind == "video" else None for medium in media]
    return [  # a file knows its own rate
        medium if known is None or medium.has_audio is not None else with_frame_options(medium, {"video_metadata": known})
        for medium, known in zip(media, stated)
    ]


def checked(messages: Any, where: str) -> list[dict]:
    """The messages of one conversation. Raises `InputError` that begins with `where` for what is none: no roles, no content, media that
    are named and not there (addresses are fetched later).
    """
    try:
        (read,), _ = read_batch([messages])
        for number, message in enumerate(read):
            if message.role == "user" and not any(message.texts) and not message.media:
                raise InputError(f"message {number} has no content; expected a text, or a list of texts and media")
            for item in message.media:
                for value in item.value if isinstance(item.value, list) else [item.value]:
                    if value is None or (isinstance(value, str) and not value.lower().startswith(("http://", "https://"))):
                        open_source(value, item.kind)
    except (InputError, MediaError) as error:
        raise InputError(f"{where}: {error}") from None
    return messages


def load_item(
    item: Item,
    sampling: SamplingOptions = SamplingOptions(),
    size_rule: SizeRule | None = None,
    with_frames: bool = True,
    with_audio: bool = False,
) -> list[Media]:
    """The picture or sound of an item; or the frames of its video and, `with_audio`, its sound track if it has one; see `load_items`."""
    own, name = item.options, item.where
    if item.kind == "image":
        picture = Media("image", name, np.asarray(_load_image(item.value, name)).transpose(2, 0, 1)[None], own.sizes)
        return [picture if size_rule is None else resized(picture, size_rule)]
    if item.kind == "audio":
        return [Media("audio", name, _load_audio(item.value, own.start_s, own.end_s, name))]
    own = replace(own, sampling=own.sampling.over(sampling))
    return load_video_and_sound(item.value, own, size_rule, name, with_frames=with_frames, with_audio=with_audio)


def load_image(value: Any, name: str = "picture") -> Image.Image:
    """Any accepted picture as an upright RGB image of 8 bits per channel.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled (not clipped) to 8 bits, and of an
    animation the first frame is taken.

    Args:
        value: see `image.IMAGE_ACCEPTED`.
        name: what error messages call it when it has no file name.

    Raises:
        MediaError: not a picture, cut short, damaged, empty, over `limits.picture_pixels`, or of a mode with no agreed range
            (floating point).
    """
    return _load_image(unwrapped(value, name), name)


def _load_image(value: Any, name: str) -> Image.Image:
    with _opened(value, "picture", name) as (source, name):
        return decode_image(source, name)


def load_audio(value: Any, start_s: float | None = None, end_s: float | None = None, name: str = "sound") -> np.ndarray:
    """Any accepted sound as mono samples.

    Files are decoded as players do it: what is there counts, not what headers say of it, and of several tracks the default one
    is taken. Channels are averaged, then resampled with soxr (HQ), piece by piece. An `end_s` past the end means the end.

    Args:
        value: see `audio.AUDIO_ACCEPTED`. Arrays are `[samples]`, or `[samples, channels]` in either order; integers are scaled
            to -1..1.
        start_s, end_s: the part to take, in seconds.
        name: what error messages call it when it has no file name.

    Returns:
        float32 `[samples]` at 16 kHz, at least `audio.MIN_SAMPLES` of them.

    Raises:
        MediaError: not a sound, cut short, damaged, no samples in the part asked for, not finite, too short, or longer than
            `limits.sound_s`.
    """
    return _load_audio(unwrapped(value, name), start_s, end_s, name)


def _load_audio(value: Any, start_s: float | None, end_s: float | None, name: str) -> np.ndarray:
    with _opened(value, "sound", name) as (source, name):
        return decode_audio(source, name, start_s, end_s)


def load_video(
    value: Any,
    sampling: SamplingOptions = SamplingOptions(),
    sizes: SizeOptions = SizeOptions(),
    *,
    sample_fps: float | None = None,
    size_rule: SizeRule | None = None,
    name: str = "video",
) -> Media:
    """Any accepted video as sampled, upright RGB frames.

    A file is shown as players show it: frames by their times (see `sampling.choose_frames`), rotated, mirrored and stretched as
    the file says, of several tracks the default one.

    Args:
        value: see `video.VIDEO_ACCEPTED`. Lists and arrays are taken whole.
        sampling: which frames of a file to take.
        sizes: stored in the clip, and handed to `size_rule`.
        sample_fps: rate of a list or array of frames.
        size_rule: when given, each frame is resized to what it says as soon as it is decoded. Without it frames keep their size,
            unless they are many and large.
        name: what error messages call it when it has no file name.

    Raises:
        MediaError: not a video, without frames, cut short, damaged, or too short for the sampling options.
    """
    options = ItemOptions(sizes, sampling, list_fps=sample_fps)
    return load_video_and_sound(unwrapped(value, name), options, size_rule, name)[0]


def load_video_and_sound(
    value: Any,
    options: ItemOptions,
    size_rule: SizeRule | None = None,
    name: str = "video",
    *,
    with_frames: bool = True,
    with_audio: bool = False,
) -> list[Media]:
    """`load_video` of what is unwrapped and, `with_audio`, the sound track of a file that has one.

    The file is opened once: an address is not downloaded again for its sound.
    """
    if not (with_frames or is_source(value)):
        return []
    if isinstance(value, (list, tuple)):
        value = [load_image(frame, f"frame {index} of {name}") for index, frame in enumerate(value)]
    media = []
    with _opened(value, "video", name) as (source, source_name):
        if with_frames:
            media.append(decode_video(source, source_name, options, size_rule))
        if with_audio and all(clip.has_audio for clip in media):
            sound = decode_sound_track(source, source_name, options.start_s, options.end_s)
            media = [replace(clip, has_audio=sound is not None, uses_audio=sound is not None) for clip in media]
            media += [] if sound is None else [Media("audio", name, sound)]
    return media


@contextmanager
def _opened(value: Any, what: str, name: str) -> Iterator[tuple[Any, str]]:
    """The open file of `value`, and its name; what is decoded already (arrays, pictures) as it is."""
    if not is_source(value):
        yield value, name
        return
    source = open_source(value, what)
    with source.open() as file:
        yield file, source.name


@dataclass(frozen=True)
class Source:
    """Encoded bytes on disk (`path`) or in memory (`data`), with the name that error messages use."""

    name: str
    path: Path | None = None
    data: bytes | None = None
    policy: AccessPolicy | None = None  # under which the path may be opened
    spool: Any = None  # the temporary file at `path`, deleted with the last reference to it

    @classmethod
    def from_content(cls, name: str, content: bytes | IO[bytes]) -> Source:
        """Bytes, or a temporary file."""
        if isinstance(content, bytes):
            return cls(name, data=content)
        return cls(name, path=Path(content.name), spool=content)

    def open(self) -> BinaryIO:
        """A new binary file object at position 0; the caller closes it. Raises `MediaError` for a file that is gone."""
        if self.path is None:
            return io.BytesIO(self.data or b"")
        try:
            return open_regular(self.path) if self.policy is None else _open_allowed(self.path, self.policy)
        except OSError as error:
            raise MediaError(f"{self.name} can be read no more: {error.strerror or error}.") from error

    def size_bytes(self) -> int:
        return len(self.data or b"") if self.path is None else self.path.stat().st_size


def is_source(value: Any) -> bool:
    """Whether `open_source` takes this kind of value (it may still fail to read it)."""
    return isinstance(value, (Source, str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read")


def open_source(value: Any, what: str, policy: AccessPolicy | None = None) -> Source:
    """Find the encoded bytes of `value`.

    Args:
        value: see `sources.ACCEPTED`. An http(s) address is downloaded as a whole.
        what: "picture", "sound" or "video", for the messages and the limits.
        policy: what may be opened; by default the one in force (see `AccessPolicy`).

    Raises:
        MediaError: nothing readable there (no such file, a folder, an empty file, a failed or cut download, bad base64), or
            what the policy does not allow.
    """
    if isinstance(value, Source):
        return value
    opener = _Opener(what, policy_in_force() if policy is None else policy)
    if isinstance(value, (bytes, bytearray, memoryview)):
        source = Source(f"{what} given as bytes", data=bytes(value))
    elif isinstance(value, str):
        source = opener.from_text(value)
    elif isinstance(value, os.PathLike):
        source = opener.from_path(os.fsdecode(value))
    elif hasattr(value, "read"):
        source = opener.from_file(value)
    else:
        raise MediaError(f"A {what} cannot be a {type(value).__name__}; give {ACCEPTED}.")
    if source.size_bytes() == 0:
        raise MediaError(f"{source.name} is empty (0 bytes).")
    return source


@dataclass(frozen=True)
class _Opener:
    """Opens one kind of media under a policy."""

    what: str
    policy: AccessPolicy

    def from_text(self, text: str) -> Source:
        """The path, address or base64 that a text is."""
        bare = text.strip().strip("\"'<>").strip()
        if self._exists(text):
            return self.from_path(text)
        if _is_address(bare):
            return self._from_address(bare)
        if is_base64(bare):
            return Source(f"{self.what} given as base64", data=from_base64(bare, self.what, self._inline_bytes()))
        meant = (bare, bare.replace("\\", "/"))  # pasted with quotes, or with the other system's slashes
        return self.from_path(next((name for name in meant if name and self._exists(os.path.expanduser(name))), text))

    def _exists(self, text: str) -> bool:
        return self.policy.files != "none" and len(text) < _LONGEST_PATH and os.path.exists(text)

    def from_path(self, text: str) -> Source:
        what, name = self.what, f"{self.what} {_short(text)}"
        if not text or "\0" in text:
            raise MediaError(f"The path {text!r} given as {what} cannot name a file; give {ACCEPTED}.")
        if self.policy.files == "none":
            raise MediaError(f"The {name} is taken for a path, and files of this machine are not opened here.")
        path = os.path.expanduser(text)
        try:
            with _open_allowed(path, self.policy):
                return Source(f"{what} {path}", path=Path(os.path.realpath(path)), policy=self.policy)
        except FileNotFoundError:
            raise MediaError(f"{name} does not exist{_working_folder(path)}; give {ACCEPTED}.") from None
        except IsADirectoryError:
            raise MediaError(f"{name} is a folder; give the file itself.") from None
        except (OSError, ValueError) as error:  # no permission, name too long, endless symbolic links, a pipe, no text
            raise MediaError(f"The {name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error

    def _from_address(self, address: str) -> Source:
        scheme = address.split(":", 1)[0].lower()
        if scheme in SCHEMES and scheme not in self.policy.schemes:
            raise MediaError(
                f"The address {_short(address)} given as {self.what} starts with {scheme}:, which is not opened here."
            )
        if scheme == "data":
            content = from_data_uri(address, f"data: URI given as {self.what}", self._inline_bytes())
            return Source(f"{self.what} in a data: URI", data=content)
        if scheme == "file":
            return self.from_path(self._path_of(address))
        if scheme in ("http", "https"):
            name = f"{self.what} {_short(address)}"
            return Source.from_content(name, download(address, self.policy, self.policy.limit_bytes(self.what), name))
        raise MediaError(f"The address {_short(address)} given as {self.what} starts with {scheme}://; give {ACCEPTED}.")

    def _path_of(self, address: str) -> str:
        """The path of a file: address. The standard wants it percent-encoded, but many are a plain path with file:// in front."""
        plain = re.sub(r"^//(localhost(?=/))?", "", address[len("file:") :])
        return plain if self._exists(plain) else urllib.parse.unquote(re.split("[?#]", plain, maxsplit=1)[0])

    def _inline_bytes(self) -> int:
        return min(self.policy.inline_bytes, self.policy.limit_bytes(self.what))

    def from_file(self, file: Any) -> Source:
        """The content of an open file from its position on or, when that is the end, all of it."""
        name = f"{self.what} {getattr(file, 'name', 'given as an open file')}"
        try:
            content = spooled(_pieces(file, self.what), self.policy.limit_bytes(self.what))
            if content == b"" and hasattr(file, "seek"):  # written to, or read, just before
                file.seek(0)
                content = spooled(_pieces(file, self.what), self.policy.limit_bytes(self.what))
        except MediaError:
            raise
        except (OSError, ValueError) as error:  # closed, not readable, too much
            raise MediaError(f"The {name} cannot be read: {error}.") from error
        return Source.from_content(name, content)


def _working_folder(path: str) -> str:
    try:
        return "" if os.path.isabs(path) else f" (looked in {os.getcwd()})"
    except OSError:  # it was removed
        return ""


def _pieces(file: Any, what: str) -> Iterator[bytes]:
    while piece := file.read(_READ_BYTES):
        if not isinstance(piece, bytes):
            kind = type(piece).__name__
            raise MediaError(f"The open file given as {what} yields {kind}; open it in binary mode ('rb').")
        yield piece


def _is_address(text: str) -> bool:
    return "://" in text or text[:5].lower() in ("data:", "file:")


def _open_allowed(path: str | os.PathLike, policy: AccessPolicy) -> BinaryIO:
    """A regular file for reading, when the policy allows it.

    Raises:
        PermissionError: it lies beyond the folders, also by way of a link; OSError: there is none, or it is no regular file.
    """
    real, anywhere = os.path.realpath(path), policy.files == "any"
    folders = [] if policy.files in ("any", "none") else [os.path.realpath(folder) for folder in policy.files]
    if not anywhere and not any(os.path.commonpath((real, folder)) == folder for folder in folders):
        raise PermissionError(13, "is not below the folders that may be read", real)
    file = open_regular(real)
    if anywhere:
        return file
    try:  # what was checked is what was opened, even if a folder became a link in between
        if os.path.realpath(real) != real or not os.path.samestat(os.stat(real), os.fstat(file.fileno())):
            raise PermissionError(13, "was exchanged while it was opened", str(path))
        return file
    except BaseException:
        file.close()
        raise


def _short(text: str, limit: int = 120) -> str:
    """A path or address for messages: not too long, and without a password."""
    text = re.sub(r"(?<=//)[^/@\s]*@", "", text[:1000])
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

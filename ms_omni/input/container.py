"""A track of a media file, opened with FFmpeg's libraries: its frames as they come, and what of it could not be decoded."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

from ms_omni.errors import MediaError, caller_level
from ms_omni.input.integrity import describe, encryption

# Formats whose content is in the file itself. Left out are those that open other files or hosts (concat, hls, dash, sdp,
# imf, image2, ...), devices, pictures, raw samples without a header, and texts, which FFmpeg would draw as letters.
FORMATS = (
    "aa,aac,ac3,aiff,amr,amrnb,amrwb,ape,apng,asf,asf_o,au,av1,avi,avr,avs2,avs3,caf,cavsvideo,dirac,dnxhd,dsf,dts,dtshd,dv,eac3,"
    "epaf,evc,f4v,flac,flv,gif,gsm,gxf,h261,h263,h264,hevc,iff,ilbc,ircam,ivf,jpegxl_anim,latm,live_flv,loas,m4v,matroska,mjpeg,"
    "mjpeg_2000,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,mxg,nistsphere,nsv,nut,nuv,obu,ogg,oma,pvf,qcp,qoa,rm,roq,"
    "sbc,shn,smjpeg,sox,spdif,swf,tak,truehd,tta,vc1,vc1test,voc,vvc,w64,wav,webm,wtv,wv,xwma,yuv4mpegpipe"
)
_JUMP_S, _LEAP_S = 1.0, 10.0  # shorter ones are rounding, reordering or gaps
_PLAYABLE = ("sound", "video", "MP4", "QuickTime", "3GP", "Matroska", "Ogg", "Media", "MPEG")  # in the words of `describe`
_MOST_CHANNELS = 1024  # as libsndfile has it
MOST_BROKEN = 0.05  # of a track's packets: so many are skipped with a warning, as players do


@contextlib.contextmanager
def open_track(file: BinaryIO, name: str, kind: str, given_as: str | None = None) -> Iterator[Track]:
    """One track of a media file, which is closed at the end; FFmpeg's errors inside come out as `MediaError`.

    Args:
        kind: "sound": the track that a player would choose, the default one, else the one that FFmpeg deems best; "video": the
            same, where the cover picture of a music file does not count.
        given_as: "sound" or "video", for the messages, where it is not the kind.

    Raises:
        MediaError: not a media file, or without such a track, or of an unknown codec.
    """
    import av

    options: dict[str, Any] = {"options": {"format_whitelist": FORMATS}}
    if int(av.__version__.split(".")[0]) < 19:  # later ones accept titles that are not in UTF-8
        options["metadata_errors"] = "ignore"
    try:
        file.seek(0)
        with av.open(file, **options) as demuxer:
            stream = _sound_stream(demuxer, name) if kind == "sound" else _picture_stream(demuxer, name)
            if stream.codec_context is None:
                locked = encryption(file)
                raise MediaError(
                    f"{name} is encrypted ({locked}); give a copy without protection."
                    if locked
                    else f"The {kind} track of {name} is in a codec that is not known here; convert it, to AAC or H.264 say."
                )
            yield Track(demuxer, stream, file, name, kind)
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise MediaError(_reason(file, name, given_as or kind, error)) from error


def _sound_stream(demuxer: Any, name: str) -> Any:
    stream = demuxer.streams.best("audio")
    if stream is None:
        raise MediaError(f"{name} has no sound track.")
    channels = stream.codec_context.channels if stream.codec_context else 0
    if channels > _MOST_CHANNELS:  # which end the process in some versions of FFmpeg
        raise MediaError(f"{name} is damaged: it declares {channels} channels; expected at most {_MOST_CHANNELS}.")
    return stream


def _picture_stream(demuxer: Any, name: str) -> Any:
    import av

    cover = av.stream.Disposition.attached_pic  # pyright: ignore[reportAttributeAccessIssue]
    streams = [stream for stream in demuxer.streams.video if not stream.disposition & cover]
    if not streams:
        pictures = "only a cover picture" if demuxer.streams.video else "no video track"
        sound = "; it has sound: give it as an audio item" if demuxer.streams.audio else ""
        raise MediaError(f"{name} has {pictures}{sound}.")
    best = demuxer.streams.best("video")
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])


def _reason(file: BinaryIO, name: str, what: str, error: Exception) -> str:
    import av

    content, reason = describe(file), getattr(error, "strerror", None) or error
    if not isinstance(error, (av.InvalidDataError, av.ArgumentError, av.EOFError)):  # those say no more than "invalid"
        content = f"{reason}; {content}"
    elif any(word in content for word in _PLAYABLE):
        content += ", but it is damaged or not complete"
    hint = "; give it as an image item" if "picture" in content else ""
    return f"{name} cannot be read as {'sound' if what == 'sound' else 'a video'}: {content}{hint}."


class _Clock:
    """Times as a player counts them: where timestamps jump back, or leap in a broadcast stream, it goes on where it was."""

    def __init__(self, demuxer: Any) -> None:
        import av

        discontinuous = demuxer.format.flags & av.format.Flags.ts_discont.value  # pyright: ignore[reportAttributeAccessIssue]
        self._leap_s = _LEAP_S if discontinuous else math.inf
        self._shift_s, self._next_s = 0.0, None

    def time_s(self, stated_s: float | None, duration_s: float) -> float:
        """The time of a frame whose timestamp is `stated_s` (None: it has none)."""
        if self._next_s is None:
            self._next_s = stated_s or 0.0
        time_s = self._next_s if stated_s is None else stated_s + self._shift_s
        if not -_JUMP_S < time_s - self._next_s < self._leap_s:
            self._shift_s, time_s = self._shift_s + self._next_s - time_s, self._next_s
        self._next_s = time_s + duration_s
        return time_s


class Track:
    """The frames of one track in the order in which a player shows them, skipping what cannot be decoded, as players do.

    Attributes:
        demuxer, stream: FFmpeg's; of the `file` of that `name`.
        kind: "sound" or "video".
        format: the container's, in FFmpeg's words.
        has_sound: whether there is a sound track in the file.
        packets, broken: how many there were, and how many of them could not be decoded, or not whole.
        intact: whether the present frame is whole: nothing before it was broken since the last frame that needs no other.
        last: the last packet with something in it, and `last_broken` whether it could not be decoded.
    """

    def __init__(self, demuxer: Any, stream: Any, file: BinaryIO, name: str, kind: str) -> None:
        self.demuxer, self.stream, self.file, self.name, self.kind = demuxer, stream, file, name, kind
        self.format, self.has_sound = demuxer.format.name, bool(demuxer.streams.audio)
        self.time_s = _Clock(demuxer).time_s
        self.packets = self.broken = 0
        self.last: Any = None
        self._started = False
        self.last_broken, self.intact = False, True

    def __iter__(self) -> Iterator[Any]:
        import av

        packets = self.demuxer.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:  # nothing more can be read
                self.broken, self.last_broken = self.broken + 1, True
                return
            frames, whole = [], True
            try:
                frames = self._whole_samples(packet).decode()
            except av.FFmpegError:
                self.broken, whole, self.intact = self.broken + 1, False, False
            if packet.size:
                self.packets, self.last, self.last_broken = self.packets + 1, packet, not whole
            for frame in frames:
                self._note_damage(frame)
                yield frame

    def _whole_samples(self, packet: Any) -> Any:
        """A packet of plain samples without a part of one at its end, with which older versions of FFmpeg refuse all of it."""
        import av

        context = self.stream.codec_context
        bits = re.match(r"pcm_[suf](\d+)", context.name)
        over = packet.size % (int(bits[1]) // 8 * max(1, context.channels)) if bits else 0
        if not over:
            return packet
        whole = av.Packet(bytes(packet)[: packet.size - over])
        whole.stream, whole.pts, whole.dts, whole.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
        return whole

    def _note_damage(self, frame: Any) -> None:
        if frame.is_corrupt:
            self.broken, self.intact = self.broken + 1, False
        elif getattr(frame, "key_frame", True) or not self._started:  # damage before the first frame does not matter
            self.intact = True
        self._started = True

    def check(self, missing: int = 0) -> None:
        """Report what could not be decoded: a warning or, if it is much or frames are `missing` as well, an error.

        Raises:
            MediaError: damaged, or encrypted.
        """
        if not self.broken:
            return
        count = f"{self.broken} of the {self.packets} packets of its {self.kind} track cannot be decoded whole"
        if missing:
            count += f", and {missing} are missing"
        elif self.broken <= max(1, MOST_BROKEN * self.packets) and self.packets > self.broken:
            warnings.warn(f"{self.name}: {count}.", stacklevel=caller_level())
            return
        locked = encryption(self.file)
        state = f"is encrypted ({locked})" if locked else "is damaged"
        raise MediaError(f"{self.name} {state}: {count}.")

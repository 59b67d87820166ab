"""A media file opened with FFmpeg's libraries: its tracks, its frames as they come, and what of it could not be decoded."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ms_omni.errors import MediaError
from ms_omni.input.integrity import describe, encryption
from ms_omni.notices import caller_level

# Formats whose content stands in the file itself. Left out are those that open other files or hosts (concat, hls, dash, sdp,
# imf, image2, ...), devices, pictures, raw samples without a header, and texts, which FFmpeg would draw as letters.
FORMATS = (
    "aa,aac,ac3,aiff,amr,amrnb,amrwb,ape,apng,asf,asf_o,au,av1,avi,avr,avs2,avs3,caf,cavsvideo,dirac,dnxhd,dsf,dts,dtshd,dv,eac3,"
    "epaf,evc,f4v,flac,flv,gif,gsm,gxf,h261,h263,h264,hevc,iff,ilbc,ircam,ivf,jpegxl_anim,latm,live_flv,loas,m4v,matroska,mjpeg,"
    "mjpeg_2000,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,mxg,nistsphere,nsv,nut,nuv,obu,ogg,oma,pvf,qcp,qoa,rm,roq,"
    "sbc,shn,smjpeg,sox,spdif,swf,tak,truehd,tta,vc1,vc1test,voc,vvc,w64,wav,webm,wtv,wv,xwma,yuv4mpegpipe"
)
_JUMP_S, _LEAP_S = 1.0, 10.0  # shorter ones are rounding, reordering or gaps
_PLAYABLE = ("sound", "video", "MP4", "QuickTime", "3GP", "Matroska", "Ogg", "Media", "MPEG")  # in the words of `describe`
MOST_BROKEN = 0.05  # of a track's packets; a player skips so many, and so do we, with a warning


@dataclass(frozen=True)
class Container:
    """An open media file: FFmpeg's `demuxer`, and the `file` and its `name`, of which errors speak."""

    demuxer: Any
    file: BinaryIO
    name: str

    def sound_track(self) -> Any:
        """The sound track that a player would choose: the default one, else the one that FFmpeg deems best.

        Raises:
            MediaError: there is none, or its codec is not known.
        """
        stream = self.demuxer.streams.best("audio")
        if stream is None:
            raise MediaError(f"{self.name} has no sound track.")
        return self._of_known_codec(stream, "sound")

    def picture_track(self) -> Any:
        """The video track that a player would choose; the cover picture of a music file is none.

        Raises:
            MediaError: there is none, or its codec is not known.
        """
        import av

        cover = av.stream.Disposition.attached_pic  # pyright: ignore[reportAttributeAccessIssue]
        all_streams = self.demuxer.streams
        streams = [stream for stream in all_streams.video if not stream.disposition & cover]
        if not streams:
            pictures = "only a cover picture" if all_streams.video else "no video track"
            sound = "; it has sound: give it as an audio item" if all_streams.audio else ""
            raise MediaError(f"{self.name} has {pictures}{sound}.")
        best = all_streams.best("video")
        stream = next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
        return self._of_known_codec(stream, "video")

    def _of_known_codec(self, stream: Any, what: str) -> Any:
        if stream.codec_context is None:
            locked = encryption(self.file)
            raise MediaError(
                f"{self.name} is encrypted ({locked}); give a copy without protection."
                if locked
                else f"The {what} track of {self.name} is in a codec that is not known here; convert it, to AAC or H.264 say."
            )
        return stream


@contextlib.contextmanager
def open_container(file: BinaryIO, name: str, what: str) -> Iterator[Container]:
    """The container, closed at the end; FFmpeg's errors inside come out as `MediaError`.

    Args:
        what: "sound" or "video", for the message.
    """
    import av

    options: dict[str, Any] = {"options": {"format_whitelist": FORMATS}}
    if int(av.__version__.split(".")[0]) < 19:  # later ones never stumble over a title that is not in UTF-8
        options["metadata_errors"] = "ignore"
    try:
        file.seek(0)
        with av.open(file, **options) as demuxer:
            yield Container(demuxer, file, name)
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise MediaError(_reason(file, name, what, error)) from error


def _reason(file: BinaryIO, name: str, what: str, error: Exception) -> str:
    import av

    known, said = describe(file), getattr(error, "strerror", None) or error
    if not isinstance(error, (av.InvalidDataError, av.ArgumentError, av.EOFError)):  # those say no more than "invalid"
        known = f"{said}; {known}"
    elif any(word in known for word in _PLAYABLE):
        known += ", but it is damaged or not complete"
    hint = "; give it as an image item" if "picture" in known else ""
    return f"{name} cannot be read as {'sound' if what == 'sound' else 'a video'}: {known}{hint}."


class Clock:
    """Times as a player counts them: where time stamps jump back, or leap in a broadcast stream, it goes on where it was."""

    def __init__(self, container: Container) -> None:
        import av

        discontinuous = container.demuxer.format.flags & av.format.Flags.ts_discont.value  # pyright: ignore[reportAttributeAccessIssue]
        self._leap_s = _LEAP_S if discontinuous else math.inf
        self._shift_s, self._next_s = 0.0, None

    def time_s(self, stated_s: float | None, duration_s: float) -> float:
        """The time of a frame whose time stamp is `stated_s` (None: it has none)."""
        if self._next_s is None:
            self._next_s = stated_s or 0.0
        time_s = self._next_s if stated_s is None else stated_s + self._shift_s
        if not -_JUMP_S < time_s - self._next_s < self._leap_s:
            self._shift_s, time_s = self._shift_s + self._next_s - time_s, self._next_s
        self._next_s = time_s + duration_s
        return time_s


class Decoding:
    """The frames of one track in the order in which a player shows them, skipping what cannot be decoded, as players do.

    Attributes:
        packets, broken: how many there were, and how many of them could not be decoded, or not whole.
        intact: whether the present frame is whole: nothing before it was broken since the last frame that needs no other.
        last: the last packet with something in it, and `last_broken` whether it could not be decoded.
    """

    def __init__(self, container: Container, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.packets = self.broken = 0
        self.last: Any = None
        self._begun = False
        self.last_broken, self.intact = False, True

    def __iter__(self) -> Iterator[Any]:
        import av

        packets = self.container.demuxer.demux(self.stream)
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
                self._look(frame)
                yield frame

    def _whole_samples(self, packet: Any) -> Any:
        """A packet of plain samples without a part of one at its end, with which older versions of FFmpeg refuse all of it."""
        import av

        context = self.stream.codec_context
        bits = re.match(r"pcm_[suf](\d+)", context.name)
        over = packet.size % (int(bits[1]) // 8 * context.channels) if bits else 0
        if not over:
            return packet
        whole = av.Packet(bytes(packet)[: packet.size - over])
        whole.stream, whole.pts, whole.dts, whole.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
        return whole

    def _look(self, frame: Any) -> None:
        if frame.is_corrupt:
            self.broken, self.intact = self.broken + 1, False
        elif getattr(frame, "key_frame", True) or not self._begun:  # what came before the first frame is no matter
            self.intact = True
        self._begun = True

    def check(self, what: str, missing: int = 0) -> None:
        """Say how much could not be decoded: in a warning, or, if it is much or frames are `missing` as well, in an error.

        Raises:
            MediaError: damaged, or encrypted.
        """
        if not self.broken:
            return
        count = f"{self.broken} of the {self.packets} packets of its {what} track cannot be decoded whole"
        if missing:
            count += f", and {missing} are missing"
        elif self.broken <= max(1, MOST_BROKEN * self.packets) and self.packets > self.broken:
            warnings.warn(f"{self.container.name}: {count}.", stacklevel=caller_level())
            return
        locked = encryption(self.container.file)
        state = f"is encrypted ({locked})" if locked else "is damaged"
        raise MediaError(f"{self.container.name} {state}: {count}.")

"""What is measured: names, the work of each scenario, and how large it is for a geometry."""

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass(frozen=True)
class Scenario:
    """name: "decode/4"; part of the model; kind: the measuring function; settings: its keyword arguments;
    counted: it counts events instead of taking time, so one repetition says all and no reference takes part; alone: it takes time
    without a reference, and warms itself.
    """

    name: str
    part: str
    kind: str
    settings: dict = field(default_factory=dict)
    counted: bool = False
    alone: bool = False

    @property
    def group(self):
        """The name without its size: what `--only` chooses by."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Sizes:
    """How much work a scenario is. Lengths in tokens, frames (80 ms of speech) or pixels."""

    image_pixels: int = 448
    video_pixels: int = 224
    video_frames: int = 8
    audio_s: float = 20.0
    prefill: tuple = (128, 512, 1024, 4096)
    batches: tuple = (1, 4, 16)
    decode_tokens: int = 64
    cached: tuple = (100, 1000)
    speech_frames: int = 50
    wave_frames: int = 100
    answer_tokens: int = 64
    answer_frames: int = 100
    requests: int = 50
    callers: tuple = (("prompt", (32, 256)), ("tokens", (16, 48)), ("frames", (25, 75)))
    burst_prompt: int = 128
    clip_s: float = 20.0
    clip_pixels: tuple = (320, 240)


SMALL = Sizes(audio_s=10.0, decode_tokens=48, speech_frames=36, answer_tokens=32, answer_frames=36)
ROWS = (1, 2, 4, 8, 16)  # of the engines that `serve` measures
SPEAKING_ROWS, BURST_ROWS = 8, 8
STREAM_FRAMES = (4, 8, 16, 25)  # the pieces that generation feeds to the vocoder
GROUPS = (
    "load",
    "memory",
    "image",
    "audio",
    "video",
    "prefill",
    "decode",
    "cached",
    "speech",
    "code2wav",
    "answer",
    "writing",
    "speaking",
    "burst",
    "again",
    "serve",
    "steps",
    "requests",
)


def sizes_of(geometry):
    """`Sizes` for a geometry: the small ones let "mini" and "tiny" finish in three minutes."""
    return SMALL if geometry in ("mini", "tiny", "odd") else Sizes()


def scenarios(sizes, speaks=True):
    """All scenarios in the order in which they run; speaks: the checkpoint has talker and vocoder."""
    listed = [
        Scenario("memory", "machine", "memory", alone=True),
        Scenario("image", "vision encoder", "image"),
        Scenario("audio", "audio encoder", "audio"),
        Scenario("video", "vision encoder", "video"),
        *(Scenario(f"prefill/{n}", "thinker prefill", "prefill", {"tokens": n}) for n in sizes.prefill),
        *(
            Scenario(f"decode/{n}", "thinker decode", "decode", {"batch": n, "prompt": 64, "tokens": sizes.decode_tokens})
            for n in sizes.batches
        ),
        *(Scenario(f"cached/{n}", "thinker decode", "cached", {"cached": n}) for n in sizes.cached),
    ]
    if speaks:
        listed += [
            Scenario("speech", "talker + predictor", "speech", {"frames": sizes.speech_frames}),
            Scenario("code2wav/whole", "code2wav", "wave_whole", {"frames": sizes.wave_frames}),
            Scenario(
                "code2wav/stream", "code2wav", "wave_stream", {"frames": sizes.wave_frames, "pieces": list(STREAM_FRAMES)}
            ),
            Scenario("answer", "whole model", "answer", {"tokens": sizes.answer_tokens, "frames": sizes.answer_frames}),
        ]
    listed.append(Scenario("steps/text", "thinker decode", "count_text", counted=True))
    if speaks:
        listed.append(Scenario("steps/speech", "talker + predictor", "count_speech", counted=True))
    listed.append(Scenario("requests", "whole model", "count_requests", {"requests": sizes.requests}, counted=True))
    return listed


def serving(sizes, rows, wishes, speaks=True):
    """Those of `serve`, in the order in which they run: one row alone and several together, then callers who come as they like.

    rows: of the engines that the callers meet; wishes: arguments of `Serving.serve`.
    """
    text = {"prompt": 64, "tokens": sizes.decode_tokens}
    listed = [
        Scenario("decode/1", "thinker decode", "decode", {"batch": 1, **text}),
        *(Scenario(f"writing/{n}", "engine", "writing", {"rows": n, **text}, alone=True) for n in (1, max(ROWS))),
    ]
    if speaks:
        frames, words = sizes.speech_frames, {"prompt": sizes.burst_prompt, "tokens": sizes.answer_tokens}
        stream = {"frames": sizes.wave_frames, "pieces": list(STREAM_FRAMES)}
        listed += [
            Scenario("speech", "talker + predictor", "speech", {"frames": frames}),
            Scenario(
                f"speaking/{SPEAKING_ROWS}", "engine", "speaking", {"rows": SPEAKING_ROWS, "frames": frames}, alone=True
            ),
            Scenario("code2wav/stream", "code2wav", "wave_stream", stream),
            Scenario(f"burst/{BURST_ROWS}", "engine", "burst", {"rows": BURST_ROWS, **words, "frames": frames}, alone=True),
        ]
    listed.append(Scenario("again", "engine", "again", {"tokens": SMALL.answer_tokens}, alone=True))
    return listed + [
        Scenario(f"serve/{n}", "engine", "serve", {"rows": n, **wishes, "load": dict(sizes.callers)}, alone=True)
        for n in rows
    ]


def chosen(listed, only):
    """The scenarios whose name or group is in `only`, all without it. Raises `InputError` for a name that is none."""
    if not only:
        return listed, True
    known = {"load", *(item.name for item in listed), *(item.group for item in listed)}
    unknown = sorted(set(only) - known)
    if unknown:
        raise InputError(
            f"there is no scenario {unknown[0]!r} for this checkpoint; expected some of "
            f"{', '.join(name for name in GROUPS if name in known)}"
        )
    return [item for item in listed if item.name in only or item.group in only], "load" in only

"""What is measured: the scenarios, how large each is for a geometry, and their inputs as arrays in one file that both sides read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Qwen3OmniMoeConfig
from ..errors import InputError
from ..files import write_file


@dataclass(frozen=True)
class Scenario:
    """name: "decode/4"; part of the model; kind: the measuring function; settings: its keyword arguments;
    counted: it counts events instead of taking time, so one repetition says all and no reference takes part; alone: it takes time
    without a reference, and warms itself.
    """

    name: str
    part: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    counted: bool = False
    alone: bool = False

    @property
    def group(self) -> str:
        """The name without its size: what `--only` chooses by."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Load:
    """Bounds of what a caller wants: prompts and answers in tokens, speech in frames of 80 ms."""

    prompt: tuple[int, int] = (32, 256)
    tokens: tuple[int, int] = (16, 48)
    frames: tuple[int, int] = (25, 75)


@dataclass(frozen=True)
class Sizes:
    """How much work a scenario is. Lengths in tokens, frames (80 ms of speech) or pixels."""

    image_pixels: int = 448
    video_pixels: int = 224
    video_frames: int = 8
    audio_s: float = 20.0
    prefill: tuple[int, ...] = (128, 512, 1024, 4096)
    batches: tuple[int, ...] = (1, 4, 16)
    decode_tokens: int = 64
    cached: tuple[int, ...] = (100, 1000)
    speech_frames: int = 50
    wave_frames: int = 100
    answer_tokens: int = 64
    answer_frames: int = 100
    requests: int = 50
    callers: Load = Load()
    burst_prompt: int = 128
    clip_s: float = 20.0
    clip_pixels: tuple[int, int] = (320, 240)


SMALL = Sizes(audio_s=10.0, decode_tokens=48, speech_frames=36, answer_tokens=32, answer_frames=36)
WARM_UPS = 4  # at most, until nothing is compiled any more
MOST_ROWS = 16  # of the rows that write together
SPEAKING_ROWS, BURST_ROWS = 8, 8
STREAM_FRAMES = (4, 8, 16, 25)  # the pieces that generation feeds to the vocoder
GROUPS = (
    *("load", "memory", "image", "audio", "video", "prefill", "decode", "cached", "speech", "code2wav", "answer"),
    *("writing", "speaking", "burst", "again", "serve", "steps", "requests"),
)
PLAIN_IDS = 250  # the first ids of any tokenizer of this family are bytes and words, never placeholders
QUESTION = "What do you see and hear in this picture and this sound?"
CLIP_QUESTIONS = {
    "video_first": "What happens in this video?",
    "video_second": "Which colours come up in it, and in which order?",
}
CLIP_HZ = 2.0  # pictures of a video per second


def sizes_of(geometry: str) -> Sizes:
    """`Sizes` for a geometry: the small ones let "mini" and "tiny" finish in three minutes."""
    return SMALL if geometry in ("mini", "tiny", "odd") else Sizes()


def scenarios(sizes: Sizes, speaks: bool = True) -> list[Scenario]:
    """All scenarios in the order in which they run; speaks: the checkpoint has talker and vocoder."""
    listed = [
        Scenario("memory", "machine", "memory", alone=True),
        Scenario("image", "vision encoder", "image"),
        Scenario("audio", "audio encoder", "audio"),
        Scenario("video", "vision encoder", "video"),
        *(Scenario(f"prefill/{n}", "thinker prefill", "prefill", {"tokens": n}) for n in sizes.prefill),
        *(_decode(sizes, rows) for rows in sizes.batches),
        *(Scenario(f"cached/{n}", "thinker decode", "cached", {"cached": n}) for n in sizes.cached),
    ]
    if speaks:
        answer = {"tokens": sizes.answer_tokens, "frames": sizes.answer_frames}
        listed += [
            _speech(sizes),
            Scenario("code2wav/whole", "code2wav", "wave_whole", {"frames": sizes.wave_frames}),
            _vocoder_stream(sizes),
            Scenario("answer", "whole model", "answer", answer),
        ]
    listed.append(Scenario("steps/text", "thinker decode", "count_text", counted=True))
    if speaks:
        listed.append(Scenario("steps/speech", "talker + predictor", "count_speech", counted=True))
    return [*listed, Scenario("requests", "whole model", "count_requests", {"requests": sizes.requests}, counted=True)]


def serving(sizes: Sizes, rows: Sequence[int], settings: dict[str, Any], speaks: bool = True) -> list[Scenario]:
    """Those of `serve`, in the order in which they run: one row alone and several together, then callers who come as they like.

    rows: of the engines that the callers meet; settings: arguments of `Serving.serve`.
    """
    text = {"prompt": 64, "tokens": sizes.decode_tokens}
    listed = [
        _decode(sizes, 1),
        *(Scenario(f"writing/{n}", "engine", "writing", {"rows": n, **text}, alone=True) for n in (1, MOST_ROWS)),
    ]
    if speaks:
        together = {"rows": SPEAKING_ROWS, "frames": sizes.speech_frames}
        burst = {
            "rows": BURST_ROWS,
            "prompt": sizes.burst_prompt,
            "tokens": sizes.answer_tokens,
            "frames": sizes.speech_frames,
        }
        listed += [
            _speech(sizes),
            Scenario(f"speaking/{SPEAKING_ROWS}", "engine", "speaking", together, alone=True),
            _vocoder_stream(sizes),
            Scenario(f"burst/{BURST_ROWS}", "engine", "burst", burst, alone=True),
        ]
    load = asdict(sizes.callers)
    return [
        *listed,
        Scenario("again", "engine", "again", {"tokens": SMALL.answer_tokens}, alone=True),
        *(Scenario(f"serve/{n}", "engine", "serve", {"rows": n, **settings, "load": load}, alone=True) for n in rows),
    ]


def _decode(sizes, rows):
    settings = {"batch": rows, "prompt": 64, "tokens": sizes.decode_tokens}
    return Scenario(f"decode/{rows}", "thinker decode", "decode", settings)


def _speech(sizes):
    return Scenario("speech", "talker + predictor", "speech", {"frames": sizes.speech_frames})


def _vocoder_stream(sizes):
    settings = {"frames": sizes.wave_frames, "pieces": list(STREAM_FRAMES)}
    return Scenario("code2wav/stream", "code2wav", "wave_stream", settings)


def chosen(listed: list[Scenario], only: Sequence[str] | None) -> tuple[list[Scenario], bool]:
    """The scenarios whose name or group is in `only`, all without it, and whether loading is. Raises `InputError` for a name of none."""
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


def write_inputs(folder: Path, sizes: Sizes, seed: int, path: Path, clip: bool = False) -> None:
    """Writes `path` (.npz) with the inputs of every scenario for the checkpoint `folder`; clip: also two questions about a video."""
    config = Qwen3OmniMoeConfig.from_pretrained(folder)
    arrays = _encoder_inputs(config.thinker_config, sizes, seed)
    arrays["ids"] = np.random.default_rng([seed, 1]).integers(0, PLAIN_IDS, (max(sizes.batches), max(sizes.prefill)))
    if config.enable_audio_output:
        vocoder = config.code2wav_config
        shape = (1, vocoder.num_quantizers, sizes.wave_frames)
        arrays["codes"] = np.random.default_rng([seed, 2]).integers(0, vocoder.codebook_size, shape)
    turns = {"question": _picture_and_sound(sizes.image_pixels // 2, 3.0, seed)}
    for name, text in CLIP_QUESTIONS.items() if clip else ():
        turns[name] = [*_video(sizes.clip_s, sizes.clip_pixels, seed), {"type": "text", "text": text}]
    for name, content in turns.items():
        arrays |= {f"{name}.{key}": value for key, value in _processed(folder, content).items()}
    write_file(path, lambda file: np.savez(file, **arrays))


def _encoder_inputs(thinker, sizes, seed):
    """Pixels and mel frames as the encoders take them."""
    rng = np.random.default_rng([seed, 0])
    vision, audio = thinker.vision_config, thinker.audio_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def pixels(side, frames):
        step = vision.patch_size * vision.spatial_merge_size
        blocks = max(side // step, 1) * vision.spatial_merge_size
        grid = np.array([[max(frames // vision.temporal_patch_size, 1), blocks, blocks]], np.int64)
        return rng.standard_normal((grid.prod(), width), np.float32), grid

    arrays = {}
    arrays["image.pixels"], arrays["image.grid"] = pixels(sizes.image_pixels, 1)
    arrays["video.pixels"], arrays["video.grid"] = pixels(sizes.video_pixels, sizes.video_frames)
    arrays["audio.features"] = rng.standard_normal((1, audio.num_mel_bins, round(100 * sizes.audio_s)), np.float32)
    return arrays


def _picture_and_sound(side, seconds, seed):
    from PIL import Image

    rng = np.random.default_rng([seed, 3])
    picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    sound = 0.1 * np.asarray(rng.standard_normal(round(16_000 * seconds))).astype(np.float32)
    return [{"type": "image", "image": picture}, {"type": "audio", "audio": sound}, {"type": "text", "text": QUESTION}]


def _video(seconds, pixels, seed):
    rng, (width, height) = np.random.default_rng([seed, 8]), pixels
    return [
        {
            "type": "video",
            "video": rng.integers(0, 256, (round(seconds * CLIP_HZ), height, width, 3), np.uint8),
            "fps": CLIP_HZ,
        }
    ]


def _processed(folder, content):
    """Model inputs of one user turn, by the checkpoint's processor."""
    from ..input.processor import Qwen3OmniMoeProcessor

    inputs = Qwen3OmniMoeProcessor.from_pretrained(folder).apply_chat_template(
        [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return {name: np.asarray(value) for name, value in inputs.items()}

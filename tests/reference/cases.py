"""Model inputs that the recorder and the parity tests build independently from a configuration and a seed.

numpy only: the recorder runs beside PyTorch, the tests beside MindSpore, and both must build the same arrays. A case is
what a processor would return (random pixels and mel frames, true grids, placeholders and a chat layout), so that the
values do not depend on any media decoder. Shapes: `input_ids`, `attention_mask` [B, T] int64; `pixel_values` and
`pixel_values_videos` [patches, C * t * p * p] float32; grids [n, 3] int64; `video_second_per_grid` [n] float64;
`input_features` [n, mel, frames] float32; `feature_attention_mask` [n, frames] int32.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

MEL_FRAMES_PER_CHUNK = 100
AUDIO_TOKENS_PER_CHUNK = 13
FRACTIONAL_SECOND_PER_GRID = 2 / 1.7  # two frames per grid at 1.7 frames per second: no integer anywhere

CASE_NAMES = (
    "text",
    "two_images",
    "audio_11s",
    "two_audios",
    "video",
    "image_audio_video",
    "audio_in_video",
    "silent_and_sound_video",
    "batch",
    "batch_audio_in_video",
)
SOUND_IN_VIDEO = ("audio_in_video", "silent_and_sound_video", "batch_audio_in_video")


@dataclass
class Case:
    """One prompt (or padded batch of prompts) as arrays, and the flag that goes with it."""

    name: str
    inputs: dict[str, np.ndarray]
    use_audio_in_video: bool

    @property
    def digest(self) -> str:
        """Checksum of all arrays; stored beside the recorded values, so that a drift of the inputs is told apart."""
        total = hashlib.sha256()
        for key in sorted(self.inputs):
            total.update(key.encode())
            total.update(np.ascontiguousarray(self.inputs[key]).tobytes())
        return total.hexdigest()[:16]

    def labels(self) -> np.ndarray:
        """Labels [B, T] int64: the second half of each prompt is learnt; the first half and padding are not."""
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        second_half = np.cumsum(mask, axis=-1) > mask.sum(axis=-1, keepdims=True) // 2
        return np.where(second_half & (mask == 1), ids, -100)

    def continuation(self, thinker_config: dict) -> list[int]:
        """Ids to go on with, as if the model had written them: placeholders without any medium, and a plain token."""
        plain = int(self.inputs["input_ids"][0, 2])
        return [thinker_config["audio_token_id"], plain, thinker_config["video_token_id"]]


def audio_tokens(mel_frames: int) -> int:
    """Number of audio tokens for a clip of `mel_frames` (100 frames per second, 13 tokens per full second)."""
    rest = mel_frames % MEL_FRAMES_PER_CHUNK
    halved = (rest - 1) // 2 + 1
    return ((halved - 1) // 2 + 1 - 1) // 2 + 1 + mel_frames // MEL_FRAMES_PER_CHUNK * AUDIO_TOKENS_PER_CHUNK


def special_token_ids(node) -> set[int]:
    """Every id in a configuration that has a meaning of its own; plain text must avoid them."""
    found = set()
    for key, value in node.items():
        if isinstance(value, dict):
            found |= special_token_ids(value)
        elif key.endswith("_token_id") and isinstance(value, int):
            found.add(value)
    return found


@dataclass
class PromptBuilder:
    """Writes one conversation: token ids and, in the order of their placeholders, the media arrays."""

    config: dict
    rng: np.random.RandomState
    ids: list[int] = field(default_factory=list)
    media: dict[str, list] = field(default_factory=dict)

    def __post_init__(self):
        thinker = self.config["thinker_config"]
        self.thinker, self.vision = thinker, thinker["vision_config"]
        specials = special_token_ids(self.config)
        limit = min(thinker["text_config"]["vocab_size"], 400)
        self.plain = [i for i in range(3, limit) if i not in specials]
        self.newline = self.plain[0]

    def text(self, length: int) -> "PromptBuilder":
        self.ids += self.rng.choice(self.plain[1:], size=length).tolist()
        return self

    def open(self, role: str) -> "PromptBuilder":
        self.ids += [self.config["im_start_token_id"], self.config[f"{role}_token_id"], self.newline]
        return self

    def close(self) -> "PromptBuilder":
        self.ids += [self.config["im_end_token_id"], self.newline]
        return self

    def image(self, rows: int, columns: int) -> "PromptBuilder":
        """An image of rows x columns tokens, that is rows * merge by columns * merge patches."""
        tokens = self._patches("pixel_values", "image_grid_thw", 1, rows, columns)
        return self._vision([self.thinker["image_token_id"]] * tokens)

    def video(self, grids: int, rows: int, columns: int, second_per_grid: float) -> "PromptBuilder":
        tokens = self._patches("pixel_values_videos", "video_grid_thw", grids, rows, columns)
        self._append("video_second_per_grid", second_per_grid)
        return self._vision([self.thinker["video_token_id"]] * tokens)

    def audio(self, mel_frames: int) -> "PromptBuilder":
        body = [self.thinker["audio_token_id"]] * self._mel(mel_frames)
        self.ids += [self.thinker["audio_start_token_id"], *body, self.thinker["audio_end_token_id"]]
        return self

    def video_with_sound(
        self, grids: int, rows: int, columns: int, second_per_grid: float, mel_frames: int
    ) -> "PromptBuilder":
        """Video and audio tokens merged by time; on a tie the video token comes first."""
        self._patches("pixel_values_videos", "video_grid_thw", grids, rows, columns)
        self._append("video_second_per_grid", second_per_grid)
        per_grid = rows * columns
        video_time = np.repeat(np.arange(grids) * second_per_grid * self.thinker["position_id_per_seconds"], per_grid)
        audio_time = np.arange(self._mel(mel_frames), dtype=np.float64)
        order = np.argsort(np.concatenate([video_time, audio_time]), kind="stable")
        kinds = [self.thinker["video_token_id"]] * len(video_time) + [self.thinker["audio_token_id"]] * len(audio_time)
        body = [kinds[i] for i in order]
        return self._vision([self.thinker["audio_start_token_id"], *body, self.thinker["audio_end_token_id"]])

    def _vision(self, body: list[int]) -> "PromptBuilder":
        self.ids += [self.thinker["vision_start_token_id"], *body, self.thinker["vision_end_token_id"]]
        return self

    def _patches(self, pixels_key: str, grid_key: str, grids: int, rows: int, columns: int) -> int:
        merge, patch = self.vision["spatial_merge_size"], self.vision["patch_size"]
        grid = (grids, rows * merge, columns * merge)
        width = self.vision["in_channels"] * self.vision["temporal_patch_size"] * patch * patch
        pixels = self.rng.standard_normal((int(np.prod(grid)), width)).astype(np.float32)
        self._append(pixels_key, pixels)
        self._append(grid_key, grid)
        return grids * rows * columns

    def _mel(self, mel_frames: int) -> int:
        bins = self.thinker["audio_config"]["num_mel_bins"]
        self._append("input_features", self.rng.standard_normal((bins, mel_frames)).astype(np.float32))
        return audio_tokens(mel_frames)

    def _append(self, key: str, value):
        self.media.setdefault(key, []).append(value)


def build_case(config: dict, name: str, seed: int) -> Case:
    """Build case `name` for a checkpoint's `config.json` (as a dict). Raises KeyError for an unknown name."""
    rng = np.random.RandomState([seed, CASE_NAMES.index(name)])  # its stream is frozen for ever
    prompts = [write(PromptBuilder(config, rng)) for write in _PROMPTS[name]]
    return Case(name, collate(prompts), name in SOUND_IN_VIDEO)


def collate(prompts: list[PromptBuilder]) -> dict[str, np.ndarray]:
    """Left-pad the ids, concatenate the media over the batch, pad mel frames on the right with noise the mask hides."""
    longest = max(len(p.ids) for p in prompts)
    pad = prompts[0].plain[1]
    inputs = {
        "input_ids": np.array([[pad] * (longest - len(p.ids)) + p.ids for p in prompts], dtype=np.int64),
        "attention_mask": np.array([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts], dtype=np.int64),
    }
    media = {}
    for prompt in prompts:
        for key, values in prompt.media.items():
            media.setdefault(key, []).extend(values)
    for key in ("pixel_values", "pixel_values_videos"):
        if key in media:
            inputs[key] = np.concatenate(media[key])
    for key in ("image_grid_thw", "video_grid_thw"):
        if key in media:
            inputs[key] = np.array(media[key], dtype=np.int64)
    if "video_second_per_grid" in media:
        inputs["video_second_per_grid"] = np.array(media["video_second_per_grid"], dtype=np.float64)
    if "input_features" in media:
        inputs.update(_pad_mel(media["input_features"], prompts[0].rng))
    return inputs


def _pad_mel(clips: list[np.ndarray], rng: np.random.RandomState) -> dict[str, np.ndarray]:
    longest = max(clip.shape[1] for clip in clips)
    features = rng.standard_normal((len(clips), clips[0].shape[0], longest)).astype(np.float32)
    mask = np.zeros((len(clips), longest), dtype=np.int32)
    for row, clip in enumerate(clips):
        features[row, :, : clip.shape[1]] = clip
        mask[row, : clip.shape[1]] = 1
    return {"input_features": features, "feature_attention_mask": mask}


def _text(p: PromptBuilder) -> PromptBuilder:
    """A system prompt, an earlier exchange (the talker skips both system and assistant turns) and a question."""
    p.open("system").text(6).close().open("user").text(9).close().open("assistant").text(7).close()
    return p.open("user").text(11).close().open("assistant")


def _two_images(p):
    p.open("user").image(2, 3).text(4).image(4, 1).text(5)
    return p.close().open("assistant")


def _audio_11s(p):
    return p.open("user").audio(1100).text(5).close().open("assistant")


def _two_audios(p):
    return p.open("user").audio(230).text(3).audio(377).text(4).close().open("assistant")


def _video(p):
    return p.open("user").text(2).video(3, 2, 3, FRACTIONAL_SECOND_PER_GRID).text(6).close().open("assistant")


def _image_audio_video(p):
    p.open("system").text(4).close().open("user").image(2, 2).text(2).audio(137)
    return p.text(3).video(2, 3, 2, FRACTIONAL_SECOND_PER_GRID).text(4).close().open("assistant")


def _audio_in_video(p):
    p.open("user").text(3).video_with_sound(4, 2, 2, FRACTIONAL_SECOND_PER_GRID, 383)
    return p.text(5).close().open("assistant")


def _silent_and_sound_video(p):
    """A silent video beside one with sound, whose picture outlasts its sound, then a clip of its own."""
    p.open("user").video(2, 2, 2, 1.0).text(2).video_with_sound(3, 1, 3, FRACTIONAL_SECOND_PER_GRID, 120)
    return p.text(3).audio(64).video(2, 1, 2, 0.75).text(4).close().open("assistant")


def _image_and_audio(p):
    return p.open("user").image(1, 3).text(2).audio(152).text(6).close().open("assistant")


def _short_text(p):
    return p.open("user").text(8).close().open("assistant")


_PROMPTS = {
    "text": [_text],
    "two_images": [_two_images],
    "audio_11s": [_audio_11s],
    "two_audios": [_two_audios],
    "video": [_video],
    "image_audio_video": [_image_audio_video],
    "audio_in_video": [_audio_in_video],
    "silent_and_sound_video": [_silent_and_sound_video],
    "batch": [_short_text, _image_and_audio, _video],
    "batch_audio_in_video": [_audio_in_video, _short_text, _two_images],
}

"""Conversations to tensors, with the runtime's own prompt expansion and patches."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ms_omni.input.media import Media
from ms_omni.input.prompt import MediaCounts, SpecialTokens, audio_token_count, expand_placeholders
from ms_omni.input.vision import ImageProcessor, encode

from .conversations import Conversation, Picture, Sound, Video

TOKENS = SpecialTokens(
    "<|image_pad|>",
    "<|audio_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
)
VISION = ImageProcessor(16, 2, 2, 1, 1 << 30, (0.5,) * 3, (0.5,) * 3)
HOP, FFT = 160, 400
IGNORED = -100
ROW_TOKENS = 192  # of a packed row


def patchify(frames: np.ndarray, settings: ImageProcessor) -> tuple[np.ndarray, tuple[int, ...]]:
    """Patches of frames `[T, C, H, W]` that have their final size, and their grid (time, height, width)."""
    patches, grids = encode([Media("video", "frames", frames, sized=True)], settings)
    return patches, tuple(grids[0].tolist())


@dataclass
class Row:
    """One conversation: tokens, labels and its media, each kind in the order of the prompt."""

    ids: list[int]
    labels: list[int]
    patches: dict  # Picture, Video -> list of float32 [N, C*t*p*p]
    grids: dict  # Picture, Video -> list of (time, height, width)
    seconds: list[float]  # per time step of each video
    sounds: list[np.ndarray]


@dataclass
class Batch:
    """Tensors of one step. Several conversations stand in one row `[R, L]` and do not see each other."""

    input_ids: torch.Tensor  # [R, L]
    labels: torch.Tensor  # [R, L], of the next token; IGNORED outside the answers
    owner: torch.Tensor  # [R, L], which conversation a token belongs to; -1 for padding
    place: torch.Tensor  # [3, R, L], rope positions
    media: dict  # keyword arguments of the thinker
    tasks: list[str]

    def mask(self) -> torch.Tensor:
        """Bool `[R, 1, L, L]`: what each token sees."""
        same = self.owner[:, :, None] == self.owner[:, None, :]
        return torch.tril(same)[:, None]


class Batcher:
    """Tokens and features of conversations.

    Args:
        tokenizer: of the miniature.
        mel_filters: `[201, 128]`, those of the feature extractor.
        rope_index: the thinker's `get_rope_index`.
    """

    def __init__(self, tokenizer, mel_filters: np.ndarray, rope_index):
        self.tokenizer, self.rope_index = tokenizer, rope_index
        self.filters = torch.tensor(mel_filters, dtype=torch.float32)
        self.pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def batch(self, conversations: list[Conversation], rng: np.random.Generator | None = None) -> Batch:
        """All conversations, packed; `rng` switches on masks and filters on the mel features."""
        rows = [self._row(conversation) for conversation in conversations]
        woven = [_has_woven_sound(conversation) for conversation in conversations]
        places = self._places(rows, woven)
        bins = pack([len(row.ids) for row in rows])
        shape = (len(bins), max(sum(len(rows[index].ids) for index in group) for group in bins))
        ids, labels, owner = torch.full(shape, self.pad), torch.full(shape, IGNORED), torch.full(shape, -1)
        place = torch.zeros(3, *shape)
        for line, group in enumerate(bins):
            end = 0
            for index in group:
                start, end = end, end + len(rows[index].ids)
                ids[line, start:end] = torch.tensor(rows[index].ids)
                labels[line, start:end] = torch.tensor(rows[index].labels)
                owner[line, start:end] = index
                place[:, line, start:end] = places[index]
        ordered = [rows[index] for group in bins for index in group]
        return Batch(ids, labels, owner, place, self._media(ordered, rng), [item.task for item in conversations])

    def user_places(self, conversation: Conversation, ids: list[int]) -> torch.Tensor:
        """Rope positions `[3, U]` of the ids of a conversation's user turns alone: what the talker uses."""
        return self._places([replace(self._row(conversation), ids=ids)], [_has_woven_sound(conversation)])[0]

    def _media(self, rows: list[Row], rng) -> dict:
        media = {}
        for kind, values, grids in (
            (Picture, "pixel_values", "image_grid_thw"),
            (Video, "pixel_values_videos", "video_grid_thw"),
        ):
            if any(row.grids[kind] for row in rows):
                media[values] = torch.from_numpy(np.concatenate([part for row in rows for part in row.patches[kind]]))
                media[grids] = _grids(rows, kind)
        sounds = [sound for row in rows for sound in row.sounds]
        if sounds:
            media["input_features"], media["feature_attention_mask"] = self.mel(sounds, rng)
        return media

    def _places(self, rows: list[Row], woven: list[bool]) -> list[torch.Tensor]:
        """Rope positions `[3, T]` of each row, by the reference's rule; rows with sound in video apart."""
        places: list = [None] * len(rows)
        for kind in (False, True):
            chosen = [index for index, flag in enumerate(woven) if flag is kind]
            if not chosen:
                continue
            group = [rows[index] for index in chosen]
            longest = max(len(row.ids) for row in group)
            ids, mask = torch.full((len(group), longest), self.pad), torch.zeros(len(group), longest, dtype=torch.long)
            for line, row in enumerate(group):
                ids[line, : len(row.ids)] = torch.tensor(row.ids)
                mask[line, : len(row.ids)] = 1
            lengths = torch.tensor([len(sound) // HOP for row in group for sound in row.sounds])
            seconds = torch.tensor([value for row in group for value in row.seconds], dtype=torch.float64)
            found, _ = self.rope_index(ids, _grids(group, Picture), _grids(group, Video), mask, kind, lengths, seconds)
            for line, index in enumerate(chosen):
                places[index] = found[:, line, : len(rows[index].ids)].float()
        return places

    def _row(self, conversation: Conversation) -> Row:
        row = Row([], [], {Picture: [], Video: []}, {Picture: [], Video: []}, [], [])

        def add(text: str, learn: bool = False):
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            row.ids.extend(tokens)
            row.labels.extend(tokens if learn else [IGNORED] * len(tokens))

        if conversation.system is not None:
            add(f"<|im_start|>system\n{conversation.system}<|im_end|>\n")
        for turn in conversation.turns:
            text, counts = self._user_text(turn.parts, row)
            expanded = expand_placeholders([text], TOKENS, counts)[0]
            add(f"<|im_start|>user\n{expanded}<|im_end|>\n<|im_start|>assistant\n")
            add(f"{turn.answer}<|im_end|>", learn=True)
            if turn is not conversation.turns[-1]:
                add("\n")
        row.labels = [*row.labels[1:], IGNORED]
        return row

    def _user_text(self, parts: tuple, row: Row) -> tuple[str, MediaCounts]:
        text, image_tokens, audio_tokens, video_grids, video_seconds, with_sound = "", [], [], [], [], []
        for part in parts:
            if isinstance(part, str):
                text += part
            elif isinstance(part, Sound):
                text += "<|audio_start|><|audio_pad|><|audio_end|>"
                row.sounds.append(part.samples)
                audio_tokens.append(int(audio_token_count(len(part.samples) // HOP)))
            else:
                picture = isinstance(part, Picture)
                frames = part.pixels[None] if picture else part.frames
                values, grid = patchify(frames.transpose(0, 3, 1, 2), VISION)
                row.patches[type(part)].append(values)
                row.grids[type(part)].append(grid)
                text += f"<|vision_start|>{TOKENS.image_token if picture else TOKENS.video_token}<|vision_end|>"
                if picture:
                    image_tokens.append(int(np.prod(grid)) // 4)
                    continue
                video_grids.append(grid)
                video_seconds.append(2 / part.fps)
                with_sound.append(part.sound is not None)
                if part.sound is not None:
                    row.sounds.append(part.sound.samples)
                    audio_tokens.append(int(audio_token_count(len(part.sound.samples) // HOP)))
        row.seconds.extend(video_seconds)
        return text, MediaCounts(
            image_tokens, audio_tokens, np.array(video_grids).reshape(-1, 3), video_seconds, with_sound, 2, 13.0
        )

    def mel(self, sounds: list[np.ndarray], rng: np.random.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel features `[n, 128, frames]` as Whisper's extractor computes them, and their mask."""
        longest = max(map(len, sounds))
        waves = torch.zeros(len(sounds), longest)
        mask = torch.zeros(len(sounds), longest // HOP, dtype=torch.long)
        for row, samples in enumerate(sounds):
            waves[row, : len(samples)] = torch.from_numpy(samples)
            mask[row, : len(samples) // HOP] = 1
        spectrum = torch.stft(waves, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)[..., :-1].abs() ** 2
        power = torch.einsum("fm,nft->nmt", self.filters, spectrum)
        if rng is not None:
            power = power * self._random_filters(len(sounds), rng)[:, :, None]
        logs = power.clamp(min=1e-10).log10()
        logs = torch.maximum(logs, logs.amax(dim=(1, 2), keepdim=True) - 8)
        features = (logs + 4) / 4
        if rng is not None:
            self._mask(features, mask, rng)
        return features, mask

    @staticmethod
    def _random_filters(count: int, rng: np.random.Generator) -> torch.Tensor:
        """Smooth gains of up to about 6 dB over the mel bins."""
        place = np.linspace(0, 1, 128)
        curves = np.zeros((count, 128))
        for wave in (0.5, 1, 2):
            curves += rng.normal(0, 0.15, (count, 1)) * np.cos(2 * np.pi * (wave * place + rng.random((count, 1))))
        return torch.tensor(10 ** (curves * (rng.random((count, 1)) < 0.6)), dtype=torch.float32)

    @staticmethod
    def _mask(features: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> None:
        """Blank up to 10 mel bins and up to 6 frames of some clips."""
        for row, frames in enumerate(mask.sum(1).tolist()):
            low = float(features[row].min())
            if rng.random() < 0.3:
                first = rng.integers(0, 118)
                features[row, first : first + rng.integers(1, 10)] = low
            if rng.random() < 0.3:
                first = rng.integers(0, frames)
                features[row, :, first : first + rng.integers(1, 6)] = low


def _has_woven_sound(conversation: Conversation) -> bool:
    return any(isinstance(part, Video) and part.sound is not None for turn in conversation.turns for part in turn.parts)


def _grids(rows: list[Row], kind: type) -> torch.Tensor:
    return torch.tensor([grid for row in rows for grid in row.grids[kind]], dtype=torch.long).reshape(-1, 3)


def pack(lengths: list[int]) -> list[list[int]]:
    """Groups of conversations whose lengths add up to at most ROW_TOKENS: longest first, each into the first that fits."""
    room, bins = max(ROW_TOKENS, *lengths), []
    for index in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        for group in bins:
            if group[0] >= lengths[index]:
                group[0] -= lengths[index]
                group.append(index)
                break
        else:
            bins.append([room - lengths[index], index])
    return [group[1:] for group in bins]

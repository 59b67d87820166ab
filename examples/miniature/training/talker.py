"""Training of the talker and its code predictor by teacher forcing; the thinker stays as it is.

Rows are built exactly as generation builds them: the user's turns (text through `text_projection`, media through
`hidden_projection`), nine opening rows, then per frame the sum of its 16 code embeddings plus one text row.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, WhisperFeatureExtractor
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

from . import codec
from .batches import IGNORED, Batcher, pack
from .conversations import Conversation, Maker, Turn
from .models import build
from .outside import outside_text
from .settings import CODES, SPEAKERS, write_settings
from .voices import load_clips
from .world import UNKNOWN, sayable


@dataclass(frozen=True)
class Stage:
    """A part of the training: up to which of its schedule's steps, on which thinker, from and to which file."""

    last: int
    steps: int
    learning_rate: float
    thinker: str
    source: str  # weights to start from; empty: those of the stage before, with the optimiser's state
    result: str
    digits: float  # share of utterances that are strings of digits


STAGES = {
    "early": Stage(1300, 1600, 1.5e-3, "thinker.sight.pt", "", "talker.early.pt", 0.0),  # waits for no later thinker
    "full": Stage(1600, 1600, 1.5e-3, "thinker.1.pt", "", "talker.pt", 0.0),
    "digits": Stage(500, 500, 5e-4, "thinker.3.pt", "talker.pt", "talker.digits.pt", 0.5),
}
BATCH = 16  # utterances of a step
FRAMES = 160  # of them, in each step, the code predictor learns this many
POOL = {
    "digits": 80,
    "spoken_sum": 20,
    "shape": 60,
    "two_shapes": 30,
    "motion": 40,
    "motion_and_digits": 60,
    "sum": 50,
    "repeat": 60,
    "strange_text": 50,
    "strange_sound": 15,
    "strange_picture": 15,
}
READ_ALOUD = "Read this text aloud."  # how `ms-omni say` asks
SAVE_EVERY = 100


@dataclass
class Prompt:
    """What the talker sees of a conversation's user turns: thinker states, and their rope positions."""

    text: torch.Tensor  # [U, H]: embeddings, zeros where media stand
    media: torch.Tensor  # [U, H]: hidden states of media, zeros elsewhere
    is_media: torch.Tensor  # bool [U]
    place: torch.Tensor  # [3, U]
    answer: str


def speakable(rng: random.Random) -> tuple[str, list[str]]:
    """A text, and the words that are to be said: its own, or, if some are not known, that it does not know."""
    chance = rng.random()
    if chance < 0.06:
        return outside_text(rng), UNKNOWN.split()
    if chance < 0.5:
        text = sayable(rng)
    elif chance < 0.65:
        text = "".join(str(rng.randrange(10)) for _ in range(rng.randint(1, 8)))
    else:
        words = [rng.choice((str(rng.randrange(10)), rng.choice(codec.WORDS))) for _ in range(rng.randint(1, 6))]
        text = rng.choice((" ", " ", ", ")).join(words)
    words = codec.spoken_words(text)
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.15:
        text += "."
    return text, words


def digit_string(rng: random.Random) -> str:
    """One to six digits, often the same ones in turn: the next word must be found by its place in the text."""
    among = rng.sample("0123456789", rng.choice((2, 3, 10)))
    return "".join(rng.choice(among) for _ in range(rng.randint(1, 6)))


@torch.no_grad()
def make_pool(thinker, talker, batcher: Batcher, clips, seed: int) -> list[Prompt]:
    """User turns of all kinds, through the thinker."""
    maker = Maker(clips, random.Random(seed))
    conversations = [maker.conversation(task) for task, count in POOL.items() for _ in range(count)]
    conversations += [Conversation("say", (Turn((READ_ALOUD,), sayable(maker.rng)),)) for _ in range(80)]
    pool = []
    for start in range(0, len(conversations), 40):
        part = conversations[start : start + 40]
        batch = batcher.batch(part)
        found = thinker(
            input_ids=batch.input_ids,
            attention_mask=batch.mask(),
            position_ids=batch.place,
            use_cache=False,
            output_hidden_states=True,
            **batch.media,
        )
        embeds, hidden = found.hidden_states[0], found.hidden_states[talker.config.accept_hidden_layer]
        for index, conversation in enumerate(part):
            chosen = batch.owner == index
            states = (batch.input_ids[chosen], embeds[chosen], hidden[chosen])
            pool.append(_prompt(*states, batcher, conversation, thinker.config))
    return pool


def _prompt(ids, embeds, hidden, batcher, conversation, config) -> Prompt:
    start_id, user_id = batcher.tokenizer.convert_tokens_to_ids(["<|im_start|>", "user"])
    at = torch.where(ids == start_id, torch.arange(len(ids)), 0).cummax(0).values
    user = ids[(at + 1).clamp(max=len(ids) - 1)] == user_id
    is_media = torch.isin(ids, torch.tensor([config.audio_token_id, config.image_token_id, config.video_token_id]))
    place = batcher.user_places(conversation, ids[user].tolist())
    text, media = (
        torch.where(mask[:, None], values, 0)[user].clone() for mask, values in ((~is_media, embeds), (is_media, hidden))
    )
    return Prompt(text, media, is_media[user], place, conversation.turns[-1].answer)


def utterance(rng: random.Random, pool: list[Prompt], stored: dict, digits: float):
    """A prompt, a speaker, the text and its codes `[frames, 16]`: in a third of the cases the prompt's own answer.

    digits: the share of utterances that are strings of digits instead.
    """
    prompt, speaker = rng.choice(pool), rng.choice(SPEAKERS)
    if digits and rng.random() < digits:
        text = digit_string(rng)
        words = codec.spoken_words(text)
    else:
        text, words = (prompt.answer, codec.spoken_words(prompt.answer)) if rng.random() < 0.35 else speakable(rng)
    by_word = stored["word_codes"][speaker]
    return prompt, speaker, text, torch.cat([*(by_word[word] for word in words), stored["end"]])


def build_rows(model, batcher: Batcher, prompt: Prompt, speaker: str, text: str, codes: torch.Tensor):
    """Input rows `[S, D]`, positions `[3, S]` and labels `[S]` (code 0 of the next frame, codec_eos at the end)."""
    config, talker = model.config, model.talker
    settings = talker.config
    table = model.thinker.get_input_embeddings().weight
    user = torch.where(prompt.is_media[:, None], talker.hidden_projection(prompt.media), talker.text_projection(prompt.text))
    role = batcher.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    tokens = batcher.tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = [*role, *[config.tts_pad_token_id] * 4, config.tts_bos_token_id, tokens[0]]
    trailing = [*tokens[1:], config.tts_eos_token_id]
    trailing = (trailing + [config.tts_pad_token_id] * len(codes))[: len(codes)]
    texts = talker.text_projection(table[opening + trailing].detach())
    special = torch.tensor(
        [
            settings.codec_nothink_id,
            settings.codec_think_bos_id,
            settings.codec_think_eos_id,
            settings.speaker_id[speaker],
            settings.codec_pad_id,
            settings.codec_bos_id,
        ]
    )
    frames = talker.get_input_embeddings()(codes[:, 0])
    for group, embedding in enumerate(talker.code_predictor.get_input_embeddings()):
        frames = frames + embedding(codes[:, group + 1])
    side = torch.cat([torch.zeros(3, texts.shape[1]), talker.get_input_embeddings()(special), frames])
    rows = torch.cat([user, texts + side])
    after = prompt.place.max() + 1 if prompt.place.numel() else 0
    place = torch.cat([prompt.place, (after + torch.arange(len(texts)))[None].expand(3, -1)], 1)
    labels = torch.cat(
        [torch.full((len(user) + len(opening) - 1,), IGNORED), codes[:, 0], torch.tensor([settings.codec_eos_token_id])]
    )
    return rows, place, labels


def losses(model, batcher: Batcher, utterances: list, generator: torch.Generator):
    """Losses of code 0 and of the other 15, and both accuracies."""
    talker = model.talker
    built = [build_rows(model, batcher, *item) for item in utterances]
    bins = pack([len(rows) for rows, _, _ in built])  # several utterances stand in one row and do not see each other
    ordered = [index for group in bins for index in group]
    rows, place, labels, owner = _packed(built, bins)
    inside, length = owner >= 0, owner.shape[1]
    mask = (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = mask[:, None]
    output = talker.model(
        inputs_embeds=rows, attention_mask=mask, position_ids=place, use_cache=False, output_router_logits=True
    )
    hidden, chosen = output.last_hidden_state, labels != IGNORED
    logits = talker.codec_head(hidden[chosen]).float()
    first = F.cross_entropy(logits, labels[chosen])
    balance = modeling.load_balancing_loss_func(
        output.router_logits,
        talker.config.text_config.num_experts,
        talker.config.text_config.num_experts_per_tok,
        inside.long(),
    )
    right = (logits.argmax(-1) == labels[chosen]).float().mean()
    states = hidden[chosen & (labels < CODES)]
    codes = torch.cat([utterances[index][3] for index in ordered])
    picked = torch.randperm(len(codes), generator=generator)[:FRAMES]
    rest, rest_right = _residual(talker, states[picked], codes[picked])
    return first, rest, balance, right.item(), rest_right


def _packed(built: list, bins: list[list[int]]):
    """Rows `[R, L, D]`, positions `[3, R, L]`, labels and owners (-1: padding) `[R, L]` of utterances in these groups."""
    longest = max(sum(len(built[index][0]) for index in group) for group in bins)
    owners = [torch.cat([torch.full((len(built[index][0]),), index) for index in group]) for group in bins]
    joined = [zip(*(built[index] for index in group)) for group in bins]
    parts = [[torch.cat(part, axis) for part, axis in zip(group, (0, 1, 0))] for group in joined]
    fill = [longest - len(item[0]) for item in parts]
    rows = torch.stack([F.pad(item[0], (0, 0, 0, free)) for item, free in zip(parts, fill)])
    place = torch.stack([F.pad(item[1], (0, free)) for item, free in zip(parts, fill)], 1)
    labels = torch.stack([F.pad(item[2], (0, free), value=IGNORED) for item, free in zip(parts, fill)])
    owner = torch.stack([F.pad(item, (0, free), value=-1) for item, free in zip(owners, fill)])
    return rows, place, labels, owner


def _residual(talker, states: torch.Tensor, codes: torch.Tensor):
    """Loss and accuracy of codes 1 to 15, given the talker's state and the codes before."""
    predictor = talker.code_predictor
    parts = [states, talker.get_input_embeddings()(codes[:, 0])]
    parts += [embedding(codes[:, group + 1]) for group, embedding in enumerate(predictor.get_input_embeddings())][:-1]
    hidden = predictor.model(inputs_embeds=torch.stack(parts, 1), use_cache=False).last_hidden_state
    logits = torch.stack([head(hidden[:, group + 1]) for group, head in enumerate(predictor.lm_head)], 1).float()
    right = (logits.argmax(-1) == codes[:, 1:]).float().mean().item()
    return F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten()), right


def learning_rate(step: int, stage: Stage) -> float:
    fall = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / stage.steps))
    return stage.learning_rate * min(1.0, (step + 1) / 50) * fall


def train(folder: Path, name: str = "full", seed: int = 9) -> None:
    """Train, or go on with a training, in `folder` (with `codec.pt`).

    name: of a stage, see `STAGES`. The words of all of the thinker's phases are the same; their states of media differ,
    but matter little: a talker reads its text.
    """
    stage = STAGES[name]
    model = build(write_settings(folder / "processor"), seed)
    model.thinker.load_state_dict(torch.load(folder / stage.thinker))
    if stage.source:
        model.talker.load_state_dict(torch.load(folder / stage.source))
    model.thinker.requires_grad_(False).eval()
    stored = codec.load(folder)
    stored["end"] = codec.Codec(**stored["codec"]).encode(np.zeros(codec.FRAME, np.float32))
    batcher = Batcher(
        AutoTokenizer.from_pretrained(folder / "processor"),
        WhisperFeatureExtractor(feature_size=128).mel_filters,
        model.thinker.model.get_rope_index,
    )
    pool = make_pool(model.thinker, model.talker, batcher, load_clips(folder / "clips/heard.npz"), seed)
    weights = list(model.talker.parameters())
    optimiser = torch.optim.AdamW(weights, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.03, fused=True)
    state_path, first_step = folder / (f"talker.{name}.state.pt" if stage.source else "talker.state.pt"), 0
    if state_path.exists():
        state = torch.load(state_path)
        model.talker.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first_step = state["step"]
    begin, recent = time.time(), []
    for step in range(first_step, stage.last):
        rng = random.Random(f"{seed}/{step}")
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, stage)
        rows = [utterance(rng, pool, stored, stage.digits) for _ in range(BATCH)]
        first, rest, balance, *right = losses(model, batcher, rows, torch.Generator().manual_seed(step))
        (first + rest + 0.003 * balance).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        recent.append((first.item(), rest.item(), *right))
        if (step + 1) % 20 == 0:
            loss_0, loss_rest, right_0, right_rest = np.mean(recent[-20:], 0)
            pace = (time.time() - begin) / (step + 1 - first_step)
            print(
                f"step {step + 1}/{stage.steps} code 0: {loss_0:.3f} ({right_0:.2%})  others: {loss_rest:.3f} "
                f"({right_rest:.2%})  {pace:.2f} s/step",
                flush=True,
            )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.last:
            partial = state_path.with_suffix(".partial")
            torch.save({"model": model.talker.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, partial)
            partial.rename(state_path)
    torch.save(model.talker.state_dict(), folder / stage.result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, default="full")
    parser.add_argument("--seed", type=int, default=9)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.stage, arguments.seed)

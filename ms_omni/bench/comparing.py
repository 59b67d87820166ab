"""Two checkpoints beside each other on the same conversations: their answers, and their distributions of the next token.

    first     writes its answers greedily; the logits along them go to files (float32: 4 bytes * tokens * vocabulary)
    second    writes its own, then reads the first one's; at each position of those the two distributions are compared

The first has gone when the second is loaded: memory holds one of them, and the logits of a few conversations.
"""

import gc
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

POSITIONS = 16  # compared at a time: a vocabulary is large
UNSPACED = (
    "\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese and Japanese, which put no blanks between words
)
WORD = re.compile(rf"(?=[{UNSPACED}])\w|[^\W{UNSPACED}]+")


@dataclass(frozen=True)
class Asked:
    """Conversations that are answered together. name: of their task; inputs: makes the processor's arrays for a model, the
    same ones for each; known: the right answer to each, None where nobody knows it; options: of both passes, such as use_audio_in_video.
    """

    name: str
    inputs: Callable[[Any], Mapping[str, Any]]
    known: Sequence[str | None]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The new ids int64 `[n]`, with the one that ends them, and their text."""

    ids: np.ndarray
    text: str


def write(model: Any, processor: Any, asked: Asked, inputs: Mapping[str, Any], tokens: int) -> list[Answer]:
    """Greedy answers of at most so many tokens."""
    ids, _ = model.generate(**inputs, **asked.options, return_audio=False, do_sample=False, max_new_tokens=tokens)
    new = np.asarray(ids)[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ended = np.isin(new, ends if isinstance(ends, list) else [ends])
    lengths = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, new.shape[1])
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return [Answer(row[:length], text.strip()) for row, length, text in zip(new, lengths, texts)]


def logits_along(model: Any, asked: Asked, inputs: Mapping[str, Any], answers: Sequence[Answer]) -> list[np.ndarray]:
    """The logits float32 `[n, V]` from which each token of the answers would be chosen, in one pass over prompts and answers."""
    longest = max(len(answer.ids) for answer in answers)
    behind, mask = np.zeros((2, len(answers), longest), np.int64)
    for row, answer in enumerate(answers):
        behind[row, : len(answer.ids)], mask[row, : len(answer.ids)] = answer.ids, 1
    before = inputs.get("attention_mask")
    before = np.ones_like(inputs["input_ids"]) if before is None else before
    read = {
        **inputs,
        "input_ids": np.concatenate([inputs["input_ids"], behind], axis=1),
        "attention_mask": np.concatenate([before, mask], axis=1),
    }
    found = model.thinker(**read, **asked.options, logits_to_keep=longest + 1).logits
    return [row[: len(answer.ids)] for row, answer in zip(found.float().asnumpy(), answers)]


class Distances:
    """Of the distributions at positions that were added: how far the second is from the first."""

    def __init__(self):
        self.divergences: list[np.ndarray] = []
        self.same: list[np.ndarray] = []

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Logits `[n, V]` of both. Raises `InputError` for vocabularies of two sizes."""
        if first.shape != second.shape:
            raise InputError(
                f"the vocabularies have {first.shape[1]} and {second.shape[1]} tokens; compare what says the same"
            )
        for start in range(0, len(first), POSITIONS):
            p, q = (_log_softmax(logits[start : start + POSITIONS]) for logits in (first, second))
            self.divergences.append((np.exp(p) * (p - q)).sum(axis=-1))
            self.same.append(p.argmax(axis=-1) == q.argmax(axis=-1))

    def summary(self) -> dict[str, float]:
        """Mean and 99th percentile of the KL divergence in nats, and the share of positions where both choose the same token; {} of none."""
        if not self.divergences:
            return {}
        divergences = np.concatenate(self.divergences)
        return {
            "positions": len(divergences),
            "kl_mean": float(divergences.mean()),
            "kl_p99": float(np.quantile(divergences, 0.99)),
            "greedy_agreement": float(np.concatenate(self.same).mean()),
        }


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def compare(
    loads: Sequence[Callable[[], Any]],
    processor: Any,
    asked: Sequence[Asked],
    folder: Path,
    tokens: int,
    beside: Callable[[Any], Any] = lambda model: None,
) -> dict[str, Any]:
    """Both checkpoints on the same conversations.

    loads: load the first and the second; folder: empty, for the first one's logits; tokens: of an answer at most; beside: what is
    done with each model before it goes. Returns `{"answers": rows, "next_token": Distances.summary(), "beside": [.., ..]}`, rows
    as `changes` takes them.
    """
    model = loads[0]()
    said = []
    for index, item in enumerate(asked):
        inputs = item.inputs(model)
        said.append(write(model, processor, item, inputs, tokens))
        np.savez(folder / f"{index}.npz", *logits_along(model, item, inputs, said[-1]))
    found = [beside(model)]
    del model
    gc.collect()  # cells know each other
    model, distances, rows = loads[1](), Distances(), []
    for index, (item, answers) in enumerate(zip(asked, said)):
        inputs = item.inputs(model)
        others = write(model, processor, item, inputs, tokens)
        with np.load(folder / f"{index}.npz") as kept:
            for first, second in zip(kept.values(), logits_along(model, item, inputs, answers)):
                distances.add(first, second)
        (folder / f"{index}.npz").unlink()
        rows += [
            {"task": item.name, "answer": known, "first": one.text, "second": other.text}
            for known, one, other in zip(item.known, answers, others)
        ]
    found.append(beside(model))
    return {"answers": rows, "next_token": distances.summary(), "beside": found}


def changes(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How the second's answers differ. rows: with the right answer or None, the first's and the second's."""
    kinds = [_kind(row) for row in rows]
    known = [row for row in rows if row["answer"] is not None]
    return {
        "count": len(rows),
        "known": len(known),
        **{f"{side}_right": sum(row[side] == row["answer"] for row in known) for side in ("first", "second")},
        **{kind: kinds.count(kind) for kind in ("same", "right_to_wrong", "wrong_to_right", "different")},
    }


def _kind(row):
    if row["first"] == row["second"]:
        return "same"
    if row["answer"] is None or row["answer"] not in (row["first"], row["second"]):
        return "different"
    return "right_to_wrong" if row["first"] == row["answer"] else "wrong_to_right"


def errors(said: Sequence, heard: Sequence) -> int:
    """The least number of elements that are exchanged, left out or put in between the two (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for place, element in enumerate(said, 1):
        corner, row[0] = row[0], place
        for column, other in enumerate(heard, 1):
            corner, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, corner + (element != other))
    return row[-1]


def words(text: str) -> list[str]:
    """What errors of speech are counted in: words in lower case, without marks; of Chinese and Japanese, characters."""
    return WORD.findall(text.lower())


def beginning(text: str, count: int) -> str:
    """The text up to its word number `count`."""
    found = list(WORD.finditer(text))
    return text[: found[count - 1].end()] if len(found) > count else text


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def of_each_task(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """(task, its `changes`), in the order of the rows, then ("all", those of all)."""
    for name in dict.fromkeys(row["task"] for row in rows):
        yield name, changes([row for row in rows if row["task"] == name])
    yield "all", changes(rows)


def random_prompts(model_config: Any, processor: Any, count: int, tokens: int, seed: int) -> list[Asked]:
    """Prompts of so many tokens each, drawn evenly from those that are words, for checkpoints that nothing can be asked."""
    text = model_config.thinker_config.text_config
    special = {*processor.tokenizer.all_special_ids, *processor.tokenizer.get_added_vocab().values()}
    words = np.setdiff1d(np.arange(min(text.vocab_size, len(processor.tokenizer))), sorted(special))
    ids = np.random.default_rng(seed).choice(words, (count, 1, tokens)).astype(np.int64)
    return [
        Asked("random", lambda _, row=row: {"input_ids": row, "attention_mask": np.ones_like(row)}, [None]) for row in ids
    ]

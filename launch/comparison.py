"""Two checkpoints on the same conversations, for `evaluate.py`: their answers, and their distributions of the next token.

    first     writes its answers greedily; the logits along them go to files (float32: 4 bytes * tokens * vocabulary)
    second    writes its own, then reads the first one's; at each position of those the two distributions are compared

The first has gone when the second is loaded: memory holds one of them, and the logits of a few conversations.
"""

import gc
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.errors import InputError

POSITIONS = 16  # compared at a time: a vocabulary is large
UNSPACED = (
    "\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese and Japanese, which put no blanks between words
)
WORD = re.compile(rf"(?=[{UNSPACED}])\w|[^\W{UNSPACED}]+")
CHANGES = ("same", "right_to_wrong", "wrong_to_right", "different")


@dataclass(frozen=True)
class Conversations:
    """Those that are answered together. task: its name; inputs: creates the processor's arrays for a model, the same ones for each;
    answers: the right one to each, None where nobody knows it; options: of both passes, such as use_audio_in_video.
    """

    task: str
    inputs: Callable[[Any], Mapping[str, Any]]
    answers: Sequence[str | None]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The new ids int64 `[n]`, with the one that ends them, and their text."""

    ids: np.ndarray
    text: str


def write(model: Any, processor: Any, item: Conversations, inputs: Mapping[str, Any], tokens: int) -> list[Answer]:
    """Greedy answers of at most so many tokens."""
    ids, _ = model.generate(**inputs, **item.options, return_audio=False, do_sample=False, max_new_tokens=tokens)
    new = np.asarray(ids)[:, inputs["input_ids"].shape[1] :]
    ended = np.isin(new, model.generation_config.eos_token_id)
    lengths = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, new.shape[1])
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return [Answer(row[:length], text.strip()) for row, length, text in zip(new, lengths, texts)]


def logits_along(model: Any, item: Conversations, inputs: Mapping[str, Any], answers: Sequence[Answer]) -> list[np.ndarray]:
    """The logits float32 `[n, V]` from which each token of the answers would be chosen, in one pass over prompts and answers."""
    longest = max(len(answer.ids) for answer in answers)
    behind, mask = np.zeros((2, len(answers), longest), np.int64)
    for row, answer in enumerate(answers):
        behind[row, : len(answer.ids)], mask[row, : len(answer.ids)] = answer.ids, 1
    before = inputs.get("attention_mask")
    before = np.ones_like(inputs["input_ids"]) if before is None else before
    whole = {
        "input_ids": np.concatenate([inputs["input_ids"], behind], 1),
        "attention_mask": np.concatenate([before, mask], 1),
    }
    logits = model.thinker(**{**inputs, **whole}, **item.options, logits_to_keep=longest + 1).logits
    return [row[: len(answer.ids)] for row, answer in zip(logits.float().asnumpy(), answers)]


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
    conversations: Sequence[Conversations],
    folder: Path,
    tokens: int,
    also: Callable[[Any], Any] = lambda model: None,
) -> tuple[list[dict[str, Any]], dict[str, float], list[Any]]:
    """Both checkpoints on the same conversations: rows as `changes` takes them, `Distances.summary()`, and what `also` returned for each.

    loads: load the first and the second; folder: empty, for the first one's logits; tokens: of an answer at most; also: called with
    each model before it goes.
    """
    model, files = loads[0](), [folder / f"{index}.npz" for index in range(len(conversations))]
    first_answers = []
    for item, file in zip(conversations, files):
        inputs = item.inputs(model)
        first_answers.append(write(model, processor, item, inputs, tokens))
        np.savez(file, *logits_along(model, item, inputs, first_answers[-1]))
    results = [also(model)]
    del model
    gc.collect()  # cells refer to each other
    model, distances, rows = loads[1](), Distances(), []
    for item, file, answers in zip(conversations, files, first_answers):
        inputs = item.inputs(model)
        others = write(model, processor, item, inputs, tokens)
        with np.load(file) as stored:
            for first, second in zip(stored.values(), logits_along(model, item, inputs, answers)):
                distances.add(first, second)
        file.unlink()
        rows += [
            {"task": item.task, "answer": right, "first": first.text, "second": second.text}
            for right, first, second in zip(item.answers, answers, others)
        ]
    return rows, distances.summary(), [*results, also(model)]


def changes(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How the second's answers differ. rows: with the right answer or None, the first's and the second's."""
    kinds = Counter(map(_kind, rows))
    known = [row for row in rows if row["answer"] is not None]
    right = {f"{side}_right": sum(row[side] == row["answer"] for row in known) for side in ("first", "second")}
    return {"count": len(rows), "known": len(known), **right, **{kind: kinds[kind] for kind in CHANGES}}


def _kind(row):
    if row["first"] == row["second"]:
        return "same"
    if row["answer"] is None or row["answer"] not in (row["first"], row["second"]):
        return "different"
    return "right_to_wrong" if row["first"] == row["answer"] else "wrong_to_right"


def task_changes(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """(task, its `changes`), in the order of the rows, then ("all", those of all)."""
    for name in dict.fromkeys(row["task"] for row in rows):
        yield name, changes([row for row in rows if row["task"] == name])
    yield "all", changes(rows)


def report_changes(
    rows: Sequence[Mapping[str, Any]], next_token: Mapping[str, float], spoken: Sequence[Any], unit: str
) -> dict[str, Any]:
    """Prints the comparison; returns its figures. rows, next_token: see `compare`; spoken: of both, the results of texts that were
    spoken and transcribed again, or in words why there are none, or None; unit: what errors of speech are counted in, "digits" or "words".
    """
    results: dict[str, Any] = {"answers": dict(task_changes(rows)), "next_token": next_token, "speech": {"unit": unit}}
    print(f"{'task':24} {'asked':>6} {'right, first':>13} {'second':>7} {'lost':>5} {'won':>5} {'else':>5}")
    for name, row in results["answers"].items():
        right = [str(row[f"{side}_right"]) if row["known"] else "-" for side in ("first", "second")]
        changed = (row["right_to_wrong"], row["wrong_to_right"], row["different"])
        print(f"{name:24} {row['count']:6} {right[0]:>13} {right[1]:>7} " + " ".join(f"{number:5}" for number in changed))
    print("lost: right, then wrong; won: wrong, then right; else: another answer, neither of them right or nobody knows")
    if next_token:
        print(
            f"next token: KL divergence {next_token['kl_mean']:.3g} nats (mean), {next_token['kl_p99']:.3g} (99th percentile); "
            f"the same choice at {next_token['greedy_agreement']:.2%} of {next_token['positions']:,} positions"
        )
    cut = list if unit == "digits" else words
    for side, texts in zip(("first", "second"), spoken):
        if isinstance(texts, str):
            print(f"its own speech in its own ears, {side + ':':8} left out, {texts}")
        elif texts:
            wrong = sum(edit_distance(cut(item["asked"]), cut(item["heard"])) for item in texts)
            count = sum(len(cut(item["asked"])) for item in texts)
            results["speech"][side] = {"errors": wrong, "count": count, "stopped": sum(item["stopped"] for item in texts)}
            print(f"its own speech in its own ears, {side + ':':8} {wrong} of {count} {unit} wrong ({wrong / count:.2%})")
    return results


def edit_distance(first: Sequence, second: Sequence) -> int:
    """The least number of elements that are exchanged, left out or put in between the two (Levenshtein)."""
    row = list(range(len(second) + 1))
    for index, element in enumerate(first, 1):
        corner, row[0] = row[0], index
        for column, other in enumerate(second, 1):
            corner, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, corner + (element != other))
    return row[-1]


def words(text: str) -> list[str]:
    """What errors of speech are counted in: words in lower case, without marks; of Chinese and Japanese, characters."""
    return WORD.findall(text.lower())


def beginning(text: str, count: int) -> str:
    """The text up to its word number `count`."""
    matches = list(WORD.finditer(text))
    return text[: matches[count - 1].end()] if len(matches) > count else text


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    width = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - width, middle + width


def random_prompts(config: Any, processor: Any, count: int, tokens: int, seed: int) -> list[Conversations]:
    """Prompts of so many tokens each, drawn evenly from those that are words, for checkpoints that nothing can be asked."""
    tokenizer = processor.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    known = np.setdiff1d(np.arange(min(config.thinker_config.text_config.vocab_size, len(tokenizer))), sorted(special))
    prompts = np.random.default_rng(seed).choice(known, (count, 1, tokens)).astype(np.int64)
    return [
        Conversations("random", lambda _, ids=ids: {"input_ids": ids, "attention_mask": np.ones_like(ids)}, [None])
        for ids in prompts
    ]

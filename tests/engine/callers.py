"""Callers of an engine of the miniature, each of whom knows what it is answered alone, bit for bit."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.engine.engine import Engine
from ms_omni.engine.plan import THINKER, Plan
from ms_omni.engine.sequence import Sequence
from ms_omni.outputs import AudioChunk, StreamEnd, StreamError, TextDelta

MINIATURE = Path(__file__).resolve().parents[2] / "examples/miniature"
SHORT = 16
"""Requests of the first numbers are short."""


class World:
    """The miniature, questions to it, and what it answers to each when nobody else is there."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[tuple, list]] = {}

    @cached_property
    def model(self) -> Any:
        from ms_omni import Qwen3OmniMoeForConditionalGeneration

        return Qwen3OmniMoeForConditionalGeneration.from_pretrained(MINIATURE, compile_steps=False, progress=False)

    @cached_property
    def processor(self) -> Any:
        from ms_omni import Qwen3OmniMoeProcessor

        return Qwen3OmniMoeProcessor.from_pretrained(MINIATURE)

    def ask(self, text: str, *media: dict[str, str], woven: bool = False, before: tuple = ()) -> dict[str, Any]:
        """Model inputs of a question with media (`{"image": file}`) in front of it, behind other messages."""
        items = [{"type": kind, kind: str(MINIATURE / "samples" / file)} for item in media for kind, file in item.items()]
        messages = [*before, {"role": "user", "content": [*items, {"type": "text", "text": text}]}]
        options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "use_audio_in_video": woven}
        return {**self.processor.apply_chat_template([messages], **options), "use_audio_in_video": woven}

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """The samples that lie beside the miniature, then long ones, of which some begin alike."""
        found = []
        for entry in json.loads((MINIATURE / "samples/samples.json").read_text()):
            media = [{item["type"]: item["file"]} for item in entry["media"]]
            found.append(self.ask(entry["question"], *media, woven=entry["use_audio_in_video"]))
        long, sums = "count from one to ten and back again, please. " * 30, ("What is 1 plus 2?", "What is 7 plus 5?")
        said = {"role": "user", "content": long}, {"role": "assistant", "content": "one two three"}
        for media in ([], [{"image": "star.jpg"}], [{"video": "moving_and_speech.mp4"}]):
            found += (self.ask(long + question, *media) for question in sums)
        return [*found, *(self.ask(question, before=said) for question in sums)]

    def request(self, kind: int) -> dict[str, Any]:
        """Arguments of a request by its number: text or speech, greedy or sampled, short or long."""
        draw = np.random.default_rng(kind)
        flags, long = draw.random(4) < 0.5, kind >= SHORT and draw.random() < 0.45
        question = self.questions[kind % len(self.questions)]
        if kind >= len(self.questions) and flags[3]:
            question = self.ask(f"What is {kind} plus {draw.integers(9)}?")
        words = int(draw.integers(60, 180) if long else draw.integers(1, 12))
        frames = int(draw.integers(30, 110) if long else draw.integers(2, 24))
        speech = {"talker_max_new_tokens": frames, "talker_do_sample": bool(flags[1])}
        if draw.random() < 0.5:
            speech["predictor_temperature"] = float(draw.random() + 0.5)
        endless = {"eos_token_id": [], "talker_eos_token_id": []} if long else {}
        counts = {"max_new_tokens": words, "seed": kind, "thinker_do_sample": bool(flags[2])}
        return {**question, **(speech if flags[0] else {"return_audio": False}), **counts, **endless}

    def tokens(self, kind: int) -> int:
        """Of the largest cache that its request can fill."""
        request = self.request(kind)
        return request["input_ids"].shape[1] + max(request["max_new_tokens"], request.get("talker_max_new_tokens", 0) + 16)

    def growing(self, kinds: int) -> list[int]:
        """Of so many kinds those that come to need some blocks more than at first."""
        found = {kind: self.request(kind) for kind in range(SHORT, kinds)}
        return [
            kind for kind, request in found.items() if "talker_eos_token_id" in request and 140 < self.tokens(kind) < 400
        ]

    def alone(self, kind: int) -> tuple[tuple, list]:
        """What it is answered by an engine that has read nothing before: what `answer` and `codes` give."""
        if kind not in self.answers:
            engine = Engine(self.model, max_rows=1, tokens=2048)
            id = engine.add(**self.request(kind))
            row = engine.rows[id]
            self.answers[kind] = answer(list(engine.events(id))), codes(row)
        return self.answers[kind]


def answer(events: list) -> tuple[list, int, bytes]:
    """Ids, number of frames and samples."""
    end = events[-1]
    assert isinstance(end, StreamEnd) and sum(isinstance(event, StreamEnd) for event in events) == 1
    sound = [event for event in events if isinstance(event, AudioChunk)]
    assert [chunk.first_sample for chunk in sound] == np.cumsum([0, *(c.pcm.shape[1] for c in sound)])[:-1].tolist()
    assert sum(isinstance(event, TextDelta) for event in events) == end.text_tokens[0]
    return end.sequences.tolist(), int(end.frames[0]), b"".join(chunk.pcm.tobytes() for chunk in sound)


def codes(row: Sequence) -> list[list[int]]:
    """Of all frames, `[Q, n]`."""
    return np.concatenate(row.codes, axis=1).tolist() if row.codes else []


def check_empty(engine: Engine) -> None:
    """Nobody is left anywhere, and all blocks are back."""
    scheduler = engine.scheduler
    assert not engine.rows and not engine.added and not engine.finishing
    assert not scheduler.rows and not scheduler.running and not scheduler.waiting and not scheduler.asleep
    assert engine.speech is None or not (engine.speech.remote or getattr(engine.speech, "sequences", ()))
    assert all(pool.used == 0 and pool.free + pool.cached == pool.capacity for pool in scheduler.pools if pool is not None)


@dataclass(eq=False)
class Call:
    """An answer on its way. fails: a part of the message that it ends with, or None; marks: what happened to it."""

    kind: int
    row: Sequence
    fails: str | None = None
    events: list = field(default_factory=list)
    marks: Counter = field(default_factory=Counter)


class Callers:
    """Those of one engine. faults: who was answered otherwise than alone; counts: of answers, and to how many what happened."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world, self.engine = world, engine
        self.calls: dict[int, Call] = {}
        self.counts: Counter = Counter()
        self.faults: list[str] = []
        plan = engine.scheduler.plan
        engine.scheduler.plan = lambda: self._watched(plan())

    def call(self, kind: int, fails: str | None = None, **options: Any) -> int:
        """Asks; the id."""
        id = self.engine.add(**{**self.world.request(kind), **options})
        self.calls[id] = Call(kind, self.engine.rows[id], fails)
        self.calls[id].marks["joined others"] = int(any(call.events for call in self.calls.values()))
        return id

    def cancel(self, id: int) -> None:
        """Somebody leaves."""
        self.engine.cancel(id)
        del self.calls[id]
        self.counts["cancelled"] += 1

    def step(self) -> None:
        """A tick, and a look at who was answered in it."""
        for id, event in self.engine.step():
            call = self.calls[id]
            call.events.append(event)
            if isinstance(event, StreamError):
                self._failed(self.calls.pop(id), event.error)
            elif isinstance(event, StreamEnd):
                self._answered(self.calls.pop(id))

    def _watched(self, plan: Plan) -> Plan:
        """Notes who is dropped, finds what was read before, and has its prompt cut."""
        marks = defaultdict(Counter, {id: call.marks for id, call in self.calls.items()})
        for (id,) in plan.preempted:
            marks[id]["dropped and rebuilt"] = 1
            marks[id]["dropped while speaking"] |= int(bool(marks[id]["frames"]))
        for id, found in plan.scheduled:
            marks[id]["prefix found"] |= int(found > 0 and not marks[id]["dropped and rebuilt"])
        for id, decoder, start, _ in plan.read:
            marks[id]["prompt cut"] |= int(decoder == THINKER and start > 0)
        for (id,) in plan.frames:
            marks[id]["frames"] = 1
        return plan

    def _failed(self, call: Call, error: Exception) -> None:
        if call.fails is None or call.fails not in str(error):
            self.faults.append(f"request {call.kind} failed, expected {call.fails}: {error!r}")
        self.counts["failed"] += 1

    def _answered(self, call: Call) -> None:
        request = self.world.request(call.kind)
        if call.fails is not None:
            self.faults.append(f"request {call.kind} was answered, expected {call.fails}")
        elif (answer(call.events), codes(call.row)) != self.world.alone(call.kind):
            self.faults.append(f"request {call.kind} was answered otherwise than alone; {dict(call.marks)}")
        self.counts["answers"] += 1
        self.counts.update(name for name, count in call.marks.items() if count and name != "frames")
        self.counts["spoken"] += bool(call.row.codes)
        self.counts["text sampled" if request["thinker_do_sample"] else "text greedy"] += 1
        if call.row.codes:
            self.counts["speech sampled" if request["talker_do_sample"] else "speech greedy"] += 1
        media = {medium.kind for medium in call.row.prompt.media}
        self.counts.update(media)
        self.counts["video with its sound"] += media == {"audio", "video"}

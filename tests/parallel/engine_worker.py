"""One rank of the tests of the engine: `engine_worker.py FOLDER OUT STRATEGY JSON`, results in `OUT/rank<n>.npz` and `.json`.

JSON: names of the cases that are asked, how long to be idle, what to do (all if it is not said), and options of the engines.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.engine.engine import Engine
from ms_omni.engine.sequence import log_probabilities
from ms_omni.errors import InputError
from ms_omni.outputs import AudioChunk, StreamEnd, StreamError
from ms_omni.parallel import start
from tests.parallel.answers import inputs_of

GREEDY = {"max_new_tokens": 6, "talker_max_new_tokens": 6, "talker_do_sample": False, "predictor_do_sample": False}
SAMPLED = {"max_new_tokens": 9, "thinker_do_sample": True, "repetition_penalty": 1.1, "talker_max_new_tokens": 5, "seed": 4}
TEXT = {"return_audio": False, "eos_token_id": [], "max_new_tokens": 12, "thinker_do_sample": True, "top_k": 0, "seed": 1}
ALL = [GREEDY, SAMPLED, TEXT]


def requests_of(folder, names):
    """Arguments of some requests, of all kinds."""
    return [{**inputs_of(folder, name), **ALL[index % len(ALL)]} for index, name in enumerate(names)]


ENGINE = {"tokens": 4096}
"""Options of all engines here; they do not take all memory."""


def engine_of(model, **options):
    """An engine."""
    return Engine(model, **{**ENGINE, **options})


class Asked:
    """A request on its way, and what came of it."""

    def __init__(self, engine, request):
        self.id = engine.add(**request)
        self.row, self.events = engine.rows[self.id], []

    def arrays(self):
        """Ids, codes and samples, or the error."""
        if isinstance(self.events[-1], StreamError):
            return {"error": np.array(str(self.events[-1].error))}
        assert isinstance(self.events[-1], StreamEnd), self.events
        sound = [event.pcm[0] for event in self.events if isinstance(event, AudioChunk)]
        codes = np.concatenate([np.zeros((0, 0), np.int64), *self.row.codes], axis=None)
        return {"ids": self.events[-1].sequences[0], "codes": codes, "samples": np.concatenate([np.zeros(0), *sound])}


def run(engine, requests, cancel=None):
    """Answers to requests that are asked one tick after another; `cancel`: the number of one that is given up."""
    waiting, asked, ticks = list(requests), [], 0
    while waiting or engine.added:
        if waiting:
            asked.append(Asked(engine, waiting.pop(0)))
        for id, event in engine.step():
            next(one for one in asked if one.id == id).events.append(event)
        ticks += 1
        if cancel is not None and ticks == 5:
            engine.cancel(asked[cancel].id)
    return [one.arrays() for number, one in enumerate(asked) if number != cancel]


def asked_by_threads(engine, requests):
    """Answers to requests each of which a thread of its own asks."""
    answers = [None] * len(requests)

    def ask(index):
        one = Asked(engine, requests[index])
        one.events += engine.events(one.id)
        answers[index] = one.arrays()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def one_by_one(model, requests, **options):
    """Each of them in an engine of its own."""
    return [run(engine_of(model, max_rows=1, **options), [request])[0] for request in requests]


def same(found, expected):
    """Whether all answers are equal, bit for bit."""
    return [
        all(np.array_equal(one[key], other[key]) for key in other) and one.keys() == other.keys()
        for one, other in zip(found, expected, strict=True)
    ]


def preempted(model, folder):
    """Answers that fit while they are short, and not when they are long."""
    requests = [{**inputs_of(folder, "text"), **TEXT, "seed": seed, "max_new_tokens": 150} for seed in range(3)]
    expected = one_by_one(model, requests)
    engine, drops = engine_of(model, tokens=384), []
    plan = engine.ranks.plan
    engine.ranks.plan = lambda: drops.extend((found := plan()).preempted) or found
    return same(run(engine, requests), expected) + [len(drops) > 0]


def failing(model, requests, expected):
    """One whose function returns nonsense on rank 0 ends alone; the other ranks hear why."""
    wrong = {**requests[0], "return_audio": False, "logits_processor": [lambda ids, scores: scores[:, :2]]}
    found = run(engine_of(model), [wrong, *requests])
    return "expected scores of shape" in str(found[0].get("error")), *same(found[1:], expected)


def followed(model, requests, expected, rank, idle_s):
    """Rank 0 is asked, by several threads, and sleeps meanwhile; the others follow."""
    engine = engine_of(model)
    if rank:
        engine.follow()
        return same(run(engine_of(model), requests), expected)  # and then all are asked again
    time.sleep(idle_s)
    kept = [refused(engine, model, requests[0])]  # by the first request, which finds out that they follow, and by later ones
    found = run(engine, requests, cancel=1)
    kept.append(refused(engine, model, requests[0]))
    time.sleep(idle_s)
    answers = asked_by_threads(engine, requests)
    closed = engine.events(engine.add(**requests[0]))
    next(closed)
    closed.close()
    engine.close()
    return [
        *kept,
        *same(found, [expected[0], *expected[2:]]),
        *same(answers, expected),
        *same(run(engine_of(model), requests), expected),
    ]


def full(model, folder, rank):
    """Answers that nobody has limited fill the caches and end with an error on every rank, whether all are asked or rank 0 alone;
    one beside them is what it is alone.
    """
    text = {**inputs_of(folder, "text"), "return_audio": False, "eos_token_id": []}
    spoken = {**inputs_of(folder, "text"), "max_new_tokens": 6, "talker_eos_token_id": [], "seed": 2}
    short = {**inputs_of(folder, "text"), **TEXT}
    expected, facts = one_by_one(model, [short]), []
    for follows in (False, True):
        engine = engine_of(model, tokens=256)
        if follows and rank:
            engine.follow()
            continue
        found = run(engine, [text, spoken, short])
        facts += ["the text was cut off" in str(found[0].get("error")), *same(found[2:], expected)]
        facts += ["the speech was cut off" in str(found[1].get("error"))]
        engine.close()
    return facts


def told(model, folder, rank):
    """Log-probabilities are those of the logits that one process returns, on every rank, whoever is asked."""
    request = {**inputs_of(folder, "text"), **TEXT, "max_new_tokens": 4}
    logits = model.generate(**request, return_dict_in_generate=True, output_logits=True).logits
    facts = []
    for follows in (False, True):
        engine = engine_of(model)
        if follows and rank:
            engine.follow()
            continue
        deltas = list(engine.events(engine.add(**request, logprobs=3)))[:-1]
        for delta, line in zip(deltas, logits, strict=True):
            (found,), expected = delta.logprobs, log_probabilities(line[0], int(delta.token[0]), 3)
            facts += [found.chosen == expected.chosen, found.ids.tolist() == expected.ids.tolist()]
        engine.close()
    return facts


def ahead(model, folder, rank):
    """What was read ahead is found on every rank, whoever is asked, and the answer is that of a lone run."""
    long = {name: np.tile(value, (1, 400 // value.shape[1] + 1)) for name, value in inputs_of(folder, "text").items()}
    requests = [{**long, **options, "prefill_tokens": 128} for options in (GREEDY, TEXT)]
    expected, facts = one_by_one(model, requests), []
    for follows in (False, True):
        engine, read = engine_of(model), []
        if follows and rank:
            engine.follow()
            continue
        facts += [
            isinstance(event, StreamEnd)
            for _ in range(2)
            for event in engine.events(engine.read(**long, prefill_tokens=128))
        ]
        chunk = engine.thinker.read
        engine.thinker.read = lambda row, start, stop, chunk=chunk, read=read: read.append(start) or chunk(row, start, stop)
        facts += [*same(run(engine, requests), expected), bool(read) and min(read) >= 384]
        engine.close()
    return facts


def refused(engine, model, request):
    """Whether a cache that only rank 0 has is refused."""
    try:
        engine.add(**{**request, **TEXT}, past_key_values=model.thinker.model.new_cache(1, 8))
    except InputError as error:
        return "on rank 0 alone" in str(error)
    return False


def traffic(model, folder):
    """Broadcasts per tick: of a tick of text for four rows, and of one with frames."""
    found = []
    text = [{**inputs_of(folder, "text"), **TEXT}] * 4
    speech = [{**inputs_of(folder, "text"), **GREEDY, "max_new_tokens": 5, "talker_max_new_tokens": 20, "eos_token_id": []}]
    for requests in (text, speech):
        engine, ticks = engine_of(model), []
        for request in requests:
            engine.add(**request)
        while engine.added:
            before = model.process_group.traffic.copy()
            engine.step()
            since = model.process_group.traffic.since(before)
            ticks.append([since.calls["broadcast"], since.nbytes["broadcast"]])
        found.append(ticks)
    return found


def interrupted(model, requests, rank):
    """SIGINT to rank 0 in the middle of an answer ends it everywhere, and the model still works."""
    engine = engine_of(model)
    engine.add(**{**requests[0], **TEXT, "max_new_tokens": 4000})
    try:
        while engine.added:
            engine.step()
            if rank == 0 and len(engine.rows[0].text.tokens) == 5:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        return "not interrupted"
    except KeyboardInterrupt:
        return "interrupted"


def interrupted_early(model, requests, expected, rank):
    """The same while rank 0 waits for the others, to hear whether they are asked the same."""
    engine, comm = engine_of(model), model.process_group.comm
    gather = comm.gather_array

    def gather_interrupted(array):
        comm.gather_array = gather
        os.kill(os.getpid(), signal.SIGINT)
        return gather(array)

    if rank == 0:
        comm.gather_array = gather_interrupted
    try:
        engine.add(**{**requests[0], **TEXT})
        while engine.added:
            engine.step()
        ended = "not interrupted"
    except KeyboardInterrupt:
        ended = "interrupted"
    return [ended == "interrupted", *same(run(engine_of(model), requests[:1]), expected)]


def different(model, requests, rank):
    """Ranks that are asked different things."""
    try:
        engine_of(model).add(**{**requests[0], "max_new_tokens": 3 + rank})
    except InputError as error:
        return str(error)
    return "no error"


def main():
    folder, out, strategy, wanted = sys.argv[1:]
    wanted = json.loads(wanted)
    ENGINE.update(wanted.get("engine", {}))
    rank = start().rank
    options = {"parallel": strategy, "compile_steps": False, "progress": False}
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, **options)
    requests = requests_of(folder, wanted["names"])
    print("loaded", flush=True)
    expected = one_by_one(model, requests)
    arrays = {f"{index}.{key}": array for index, one in enumerate(expected) for key, array in one.items()}
    np.savez(Path(out) / f"rank{rank}.npz", **arrays)
    time.sleep(0 if rank else wanted["idle_s"])
    work = {
        "together": lambda: same(run(engine_of(model), requests), expected),
        "cancelled": lambda: same(run(engine_of(model), requests, cancel=1), [expected[0], *expected[2:]]),
        "different": lambda: different(model, requests, rank),
        "traffic": lambda: traffic(model, folder),
        "failing": lambda: failing(model, requests, expected),
        "followed": lambda: followed(model, requests, expected, rank, wanted["idle_s"]),
        "full": lambda: full(model, folder, rank),
        "told": lambda: told(model, folder, rank),
        "ahead": lambda: ahead(model, folder, rank),
        "interrupted": lambda: interrupted(model, requests, rank),
        "interrupted early": lambda: interrupted_early(model, requests, expected[:1], rank),
        "dropped": lambda: preempted(model, folder),
        "again": lambda: same(run(engine_of(model), requests), expected),
    }
    facts, began = {}, time.monotonic()
    for name in wanted.get("work", work):
        facts[name] = work[name]()
        print(f"{name} after {time.monotonic() - began:.1f} s", flush=True)
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

"""One rank of the tests of expert parallelism: `ep_worker.py FOLDER OTHER OUT JSON`, results in `OUT/rank<n>.npz|.json`.

OTHER: a checkpoint that is not FOLDER's. JSON: arguments of `answers`.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.errors import OmniError
from ms_omni.parallel import start
from tests.parallel.answers import answers, inputs_of


def message_of(function):
    """What the error says that a call raises."""
    try:
        function()
    except OmniError as error:
        return str(error)
    return "no error"


def refusals(folder, other, rank):
    """What is said when ranks do not mean the same model, or one of them cannot read it."""
    load = Qwen3OmniMoeForConditionalGeneration.from_pretrained
    return {
        "other weights": message_of(lambda: load(other if rank else folder)),
        "no folder": message_of(lambda: load(folder + "/none" if rank else folder)),
        "other arguments": message_of(lambda: load(folder, enable_audio_output=False if rank else None)),
    }


def disagreements(model, inputs, rank):
    """Ranks that are asked different things, draw without a seed, or stop at different times."""
    few = {"max_new_tokens": 6, "eos_token_id": []}
    found = {"other requests": message_of(lambda: model.thinker.generate(**inputs, max_new_tokens=3 + rank))}
    found["drawn"] = model.thinker.generate(**inputs, **few, do_sample=True, temperature=3.0).tolist()
    _, wave = model.generate(**inputs, **few, talker_max_new_tokens=6)
    found["spoken"] = float(np.abs(wave).sum())
    for who in (0, 1):  # rank `who` stops after three events, the others would go on
        seen = []
        for event in model.stream(**inputs, **few, talker_max_new_tokens=6, seed=1):
            seen.append(type(event).__name__)
            if rank == who and len(seen) == 3:
                break
        found[f"rank {who} stops"] = seen
    return found


def interrupted(model, inputs, rank):
    """A SIGINT to rank 0 in the middle of an answer; returns how it ended, and that the model still works."""
    if rank == 0:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
    try:
        model.thinker.generate(**inputs, max_new_tokens=4000, eos_token_id=[])
        ending = "not interrupted"
    except KeyboardInterrupt:
        ending = "interrupted"
    return ending, model.thinker.generate(**inputs, max_new_tokens=3, eos_token_id=[]).tolist()


def traffic_of_a_token(model, inputs):
    """Calls and bytes that one more token costs."""
    counts = []
    for tokens in (4, 5):
        before = model.process_group.traffic.copy()
        model.thinker.generate(**inputs, max_new_tokens=tokens, eos_token_id=[])
        counts.append(model.process_group.traffic.since(before))
    more = counts[1].since(counts[0])
    return more.calls, more.nbytes


def main():
    folder, other, out, wanted = sys.argv[1:]
    rank = start().rank
    facts = {"refused": refusals(folder, other, rank)}
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False)
    facts["held"] = sum(parameter.nbytes for parameter in model.get_parameters())
    facts["encoders"] = model.process_group.traffic.calls["all_gather"]
    np.savez(Path(out) / f"rank{rank}.npz", **answers(model, folder, **json.loads(wanted)))
    inputs = inputs_of(folder, "text")
    facts["token"] = traffic_of_a_token(model, inputs)
    facts["agreed"] = disagreements(model, inputs, rank)
    facts["interrupted"] = interrupted(model, inputs, rank)
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

"""One rank of a model on emulated kernels of Ascend: `ascend_worker.py FOLDER OUT JSON`, results in `OUT/rank<n>.npz` and `.json`.

JSON: whether heads are split, after how many calls steps are graphs, how many callers there are, and rows at a time.
"""

import json
import sys
from pathlib import Path

import numpy as np
from mindspore.common import api

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.parallel import start
from tests.generation.small import GREEDY, TEXT, requests_of
from tests.parallel.answers import inputs_of
from tests.parallel.engine_worker import asked_by_threads, engine_of, run, same


def steps_of(engine):
    """What the launches of an engine are made of: of each decoder whether its weights are packed, its query heads and its sums."""
    stacks = [stage.pool.stack for stage in (engine.thinker, engine.speech)]
    return [stack and [stack.layers[0].heads, len(stack.sums)] for stack in stacks]


def sums_of_a_token(engine, request):
    """Calls and bytes of sums that an answer takes which is a token longer."""
    found = []
    for tokens in (3, 4):
        before = engine.model.process_group.traffic.copy()
        run(engine, [{**request, **TEXT, "max_new_tokens": tokens}])
        since = engine.model.process_group.traffic.since(before)
        found.append(np.array([since.calls["all_reduce"], since.nbytes["all_reduce"]]))
    return (found[1] - found[0]).tolist()


def main():
    folder, out, wanted = sys.argv[1:]
    wanted, rank = json.loads(wanted), start().rank
    load = Qwen3OmniMoeForConditionalGeneration.from_pretrained
    model = load(folder, parallel="ep", split_heads=wanted["split_heads"], compile_steps=False, progress=False)
    model.compile_after = wanted["compile_after"]
    print("loaded", flush=True)
    requests, facts = requests_of(folder)[: wanted["callers"]], {}
    engine = engine_of(model, max_rows=wanted["rows"])
    facts["steps"], facts["graphs"] = steps_of(engine), [len(api.ms_compile_cache)]
    print("started", flush=True)
    found = run(engine, requests)
    facts["token"] = sums_of_a_token(engine, requests[0])
    print("answered", flush=True)
    if rank:
        engine.follow()
    else:
        facts["followed"] = [*same(run(engine, requests), found), *same(asked_by_threads(engine, requests), found)]
        engine.close()
    print("followed", flush=True)
    facts["graphs"].append(len(api.ms_compile_cache))
    ids, _ = model.generate(**inputs_of(folder, "text"), **GREEDY)
    facts["generate"] = [np.array_equal(ids[0], found[0]["ids"])]
    facts["graphs"].append(len(api.ms_compile_cache) - facts["graphs"][-1])
    np.savez(
        Path(out) / f"rank{rank}.npz", **{f"{n}.{key}": array for n, one in enumerate(found) for key, array in one.items()}
    )
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

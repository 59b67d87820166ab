"""Counts what one more token sends, on every rank: `traffic_worker.py FOLDER OUT STRATEGY...`, results in `OUT/rank<n>.json`."""

import json
import sys
from pathlib import Path

import numpy as np

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.parallel import start

PROMPT = np.array([[5, 6, 7, 8]])


def main():
    folder, out, *strategies = sys.argv[1:]
    rank, found = start().rank, {}
    for strategy in strategies:
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, parallel=strategy, progress=False)
        counts = []
        for tokens in (1, 4, 5):  # the first makes the engine
            before = model.process_group.traffic.copy()
            model.thinker.generate(
                input_ids=PROMPT, attention_mask=np.ones_like(PROMPT), max_new_tokens=tokens, eos_token_id=[]
            )
            counts.append(model.process_group.traffic.since(before))
        more = counts[2].since(counts[1])
        held = sum(parameter.nbytes for parameter in model.get_parameters())
        found[strategy] = {"calls": more.calls, "nbytes": more.nbytes, "held": held}
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

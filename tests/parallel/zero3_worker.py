"""One rank of the tests of ZeRO-3: `zero3_worker.py FOLDER OUT HOW JSON`, results in `OUT/rank<n>.npz` and `.json`.

HOW: "pretrained" loads with parallel="zero3"; "network" loads the whole model and calls prepare_network on it; "parts"
calls it on thinker, talker and code2wav. JSON: arguments of `answers`.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.parallel import prepare_network, start
from tests.parallel.answers import answers


def load(folder, how):
    mesh = start()
    if how == "pretrained":
        return mesh, Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, parallel="zero3", progress=False)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, parallel=None, progress=False)
    if how == "network":
        return mesh, prepare_network(model, zero_stage=3)
    for part in ("thinker", "talker", "code2wav"):
        if hasattr(model, part):
            setattr(model, part, prepare_network(getattr(model, part), zero_stage=3))
    return mesh, model


def main():
    folder, out, how, wanted = sys.argv[1:]
    mesh, model = load(folder, how)
    held = sum(parameter.nbytes for parameter in model.get_parameters())
    np.savez(Path(out) / f"rank{mesh.rank}.npz", **answers(model, folder, **json.loads(wanted)))
    facts = {"size": mesh.size, "held": held}
    (Path(out) / f"rank{mesh.rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

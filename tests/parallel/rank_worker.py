"""One rank that starts from files of its own: `rank_worker.py OUT OTHER JSON FOLDER...`, results in `OUT/rank<n>.json` and
`OUT/<folder>-rank<n>.npz`. OTHER: cut for another number of ranks. JSON: arguments of `answers`."""

import json
import sys
from pathlib import Path

import numpy as np

from ms_omni import Qwen3OmniMoeCode2Wav, Qwen3OmniMoeForConditionalGeneration
from ms_omni.errors import OmniError
from ms_omni.parallel import start
from tests.parallel.answers import answers


def main():
    out, other, wanted, *folders = sys.argv[1:]
    rank, facts = start().rank, {}
    try:
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(other)
    except OmniError as error:
        facts["refused"] = str(error)
    for folder in map(Path, folders):
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False)
        np.savez(Path(out) / f"{folder.name}-rank{rank}.npz", **answers(model, folder, **json.loads(wanted)))
        part = Qwen3OmniMoeCode2Wav.from_pretrained(folder, progress=False)
        held = [sum(parameter.nbytes for parameter in cell.get_parameters()) for cell in (model, model.code2wav, part)]
        facts[folder.name] = {"strategy": model.process_group.strategy, "held": held}
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

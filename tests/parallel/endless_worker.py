"""One rank in the middle of a long answer: `endless_worker.py FOLDER OUT`; once it is under way, `OUT/pid<rank>` says who."""

import os
import sys
from pathlib import Path

import numpy as np

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.parallel import start

PROMPT = np.array([[5, 6, 7, 8]])


def main():
    folder, out = sys.argv[1:]
    rank = start().rank
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False, compile_steps=False)
    options = {"max_new_tokens": 20_000, "eos_token_id": [], "generation_mode": "text"}
    for count, _ in enumerate(model.stream(input_ids=PROMPT, attention_mask=np.ones_like(PROMPT), **options)):
        if count == 5:
            Path(out, f"pid{rank}").write_text(str(os.getpid()), encoding="ascii")


if __name__ == "__main__":
    main()

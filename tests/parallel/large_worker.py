"""Memory, time and traffic of a checkpoint that is not tiny: `large_worker.py FOLDER OUT STRATEGY...`, in `OUT/rank<n>.json`."""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.parallel import start
from ms_omni.runtime import setup

PROMPT = np.array([[5, 6, 7, 8]])
TOKENS = {"ep": 48, "zero3": 5}  # a step is compiled after 32
TIMED = {"ep": 12, "zero3": 3}


def resident(what="VmRSS"):
    """Bytes of this process in memory; VmHWM: the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(folder, strategy):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the one before has freed
    forget_peak()
    before = resident()
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, parallel=strategy, progress=False)
    held = sum(parameter.nbytes for parameter in model.get_parameters())
    peak = resident("VmHWM") - before
    options = {"max_new_tokens": TOKENS[strategy], "eos_token_id": [], "generation_mode": "text"}
    times, bytes_sent = [], []
    for _ in model.stream(input_ids=PROMPT, attention_mask=np.ones_like(PROMPT), **options):
        times.append(time.monotonic())
        bytes_sent.append(model.process_group.traffic.total_bytes)
    last = slice(-TIMED[strategy] - 2, -1)  # the last event is the end
    return {
        "held": held,
        "peak": peak,
        "seconds": float(np.median(np.diff(times[last]))),
        "sent": int(np.median(np.diff(bytes_sent[last]))),
    }


def main():
    folder, out, *strategies = sys.argv[1:]
    mesh = start()
    setup()
    ms.Tensor(np.ones(4, np.float32)).sum().asnumpy()  # what MindSpore itself takes
    found = {strategy: measure(folder, strategy) for strategy in strategies}
    Path(out, f"rank{mesh.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

"""How fast the memory of this machine is read, and how many bytes of weights a token reads: what bounds decoding."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..parallel.step_costs import EXPERTS, TABLE, TEXT

READ_BYTES, READS = 1 << 29, 8
SCALED = re.compile("_(scale|offset)$")  # what belongs to codes is read with them
KINDS = {"uint8": "int4"}  # two codes lie in a byte


def read_gb_per_s() -> float:
    """The fastest of some plain sums over floats by all threads that this process may use (BLAS sums their squares)."""
    threads = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            started = time.perf_counter()
            list(pool.map(np.dot, parts, parts))
            seconds.append(time.perf_counter() - started)
    return READ_BYTES / min(seconds) / 1e9


def token_bytes(model: Any, rows: int) -> float:
    """Bytes of weights that a step of the thinker reads for so many rows, as they lie in memory; keys and values are not counted.

    Of its experts rows read those that even choices find, see `parallel/step_costs.py`.
    """
    text, total = model.config.thinker_config.text_config, 0.0
    share = 1 - (1 - text.num_experts_per_tok / text.num_experts) ** rows
    for name, parameter in model.parameters_and_names():
        matrix = SCALED.sub("", name)
        if TEXT.fullmatch(matrix) or (text.tie_word_embeddings and matrix == TABLE):
            total += parameter.nbytes * (share if EXPERTS.fullmatch(matrix) else 1)
    return total


def storage(model: Any) -> str:
    """How the weights lie in memory, the larger part first: "int4 0.51 GB, bfloat16 0.31 GB, float32 0.09 GB"."""
    sizes: dict[str, int] = {}
    for parameter in model.get_parameters():
        kind = str(parameter.dtype).lower()
        sizes[KINDS.get(kind, kind)] = sizes.get(KINDS.get(kind, kind), 0) + parameter.nbytes
    ranked = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {nbytes / 1e9:.2f} GB" for kind, nbytes in ranked)

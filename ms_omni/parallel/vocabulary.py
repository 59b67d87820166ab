"""Choosing tokens while every rank knows the logits of its own part of the vocabulary only.

What travels per step and row is the largest scores that the device found (`likeliest`: one where all rows decode greedily);
where the host chooses, the largest score of each rank for greedy decoding, the `top_k + 1` largest for sampling
with top_k, and all logits only where every one may be drawn (sampling without top_k, or with top_h) or is asked for
(output_scores, output_logits, a logits_processor).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from ..generation.sampling import Likeliest
from ..modeling import ops
from ..modeling.ops.fused import CANDIDATES
from .collectives import Collectives


class SplitVocabulary:
    """bounds: ids `[bounds[r], bounds[r + 1])` are rank r's."""

    def __init__(self, comm: Collectives, bounds: list[int]) -> None:
        self.comm = comm
        self.bounds = bounds
        self.size = bounds[-1]
        self.first = bounds[comm.rank]
        self.widest = max(np.diff(bounds).tolist())

    def together(self, kind: Any, lines: Sequence[Any], sampler: Any) -> Any:
        """What rows choose from, by what every rank found of each: `likeliest`, all logits (kind None), or `scores`."""
        if kind is Likeliest:
            return self.likeliest(lines)
        return self.whole(np.stack(lines)) if kind is None else self.scores(sampler, np.stack(lines))

    def scores(self, sampler: Any, logits: np.ndarray) -> np.ndarray:
        """Adjusted scores `[B, V]` that `sampler` chooses from as it would from all; -inf where nothing can be chosen.

        logits float32 `[B, n]` of this rank's ids, or `[B, V]` of all.
        """
        if logits.shape[1] == self.size:
            return sampler.adjust(logits)
        mine, params = sampler.adjust(logits, self.first), sampler.params
        broken = np.isnan(mine.max(axis=1))
        if broken.any():  # every number of such a row, so that what is sent shows it
            mine = np.where(broken[:, None], np.float32(np.nan), mine)
        if not params.do_sample:
            return self._largest(mine, mine, 1)[0]
        if not 0 < params.top_k < self.size or params.top_h is not None:  # top_h comes before top_k
            return self.whole(mine)
        tempered = mine / np.float32(params.temperature)
        scores, sent = self._largest(mine, tempered, params.top_k + 1)
        return self.whole(mine) if self._cut_a_tie(sent, params.top_k) else scores

    def likeliest(self, parts: Sequence[Likeliest]) -> list[Likeliest]:
        """`[Likeliest, ...]` of this rank's ids, per row, as many of each -> those of all ranks."""
        scores, ids = (np.stack(column) for column in zip(*parts))
        message = np.stack([scores, ids.astype(np.int32).view(np.float32)], -1)
        count = 1 if scores.shape[1] == 1 else min(CANDIDATES, self.widest)
        message = np.pad(message, [(0, 0), (0, count - scores.shape[1]), (0, 0)], constant_values=-np.inf)
        sent = np.moveaxis(self.comm.gather_array(message), 0, 1).reshape(len(parts), -1, 2)  # [B, size * count, 2]
        found = []
        for scores, ids in zip(sent[..., 0], np.ascontiguousarray(sent[..., 1]).view(np.int32)):
            order = ids.argsort(kind="stable")
            found.append(Likeliest(scores[order], ids[order]))
        return found

    def _largest(self, scores: np.ndarray, order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """All ranks' `count` largest scores by `order`, put in place among -inf: `[B, V]`; and what each sent of `order`,
        `[size, B, count]`, NaN where a rank has fewer.
        """
        batch, width = scores.shape
        count = min(count, self.widest)
        taken = min(count, width)
        if taken == 1:
            picked = order.argmax(axis=1)[:, None]  # the first of equals, as in one process
        else:
            picked = np.argpartition(-order, taken - 1, axis=1)[:, :taken]
        message = np.zeros((batch, count, 3), np.float32)
        message[:, taken:, 2] = np.nan
        message[:, :taken, 0] = np.take_along_axis(scores, picked, 1)
        message[:, :taken, 1] = (picked + self.first).astype(np.int32).view(np.float32)
        message[:, :taken, 2] = np.take_along_axis(order, picked, 1)
        sent = self.comm.gather_array(message[:, :, : 3 if count > 1 else 2])
        whole = np.full((batch, self.size), -np.inf, np.float32)
        for rank in range(self.comm.size):
            held = min(count, self.bounds[rank + 1] - self.bounds[rank])
            ids = np.ascontiguousarray(sent[rank, :, :held, 1]).view(np.int32)
            np.put_along_axis(whole, ids, sent[rank, :, :held, 0], 1)
        return whole, sent[..., -1]

    def _cut_a_tie(self, sent: np.ndarray, top_k: int) -> bool:
        """Whether a rank may hold more scores equal to the k-th largest than it sent, `[size, B, count]`; they count too."""
        everything = np.nan_to_num(np.moveaxis(sent, 0, 1).reshape(sent.shape[1], -1), nan=-np.inf, neginf=-np.inf)
        threshold = np.partition(everything, -top_k, axis=1)[:, -top_k]  # [B]
        for rank, row in enumerate(sent):
            complete = self.bounds[rank + 1] - self.bounds[rank] <= row.shape[1]
            if not complete and ((row.min(axis=1) >= threshold) & np.isfinite(threshold)).any():
                return True
        return False

    def whole(self, logits: np.ndarray) -> np.ndarray:
        """Rows `[B, n]` of every rank's part -> `[B, V]`."""
        if logits.shape[1] == self.size:
            return logits
        padded = np.zeros((len(logits), self.widest), np.float32)
        padded[:, : logits.shape[1]] = logits
        rows = self.comm.gather_array(padded)
        return np.concatenate([rows[rank, :, :width] for rank, width in enumerate(np.diff(self.bounds))], axis=1)

    def collect(self, logits: Tensor) -> Tensor:
        """Device logits `[..., n]` of every rank's part -> `[..., V]`."""
        shape = tuple(logits.shape[:-1])
        rows = logits.reshape(-1, logits.shape[-1])
        count, width = rows.shape
        if width < self.widest:
            rows = ops.concat((rows, rows[:, : self.widest - width]), 1)  # any filling will do
        everything = self.comm.all_gather(rows)  # [size * rows, widest]
        widths = np.diff(self.bounds).tolist()
        parts = [everything[rank * count : (rank + 1) * count, :width] for rank, width in enumerate(widths)]
        return ops.concat(parts, 1).reshape(*shape, self.size)

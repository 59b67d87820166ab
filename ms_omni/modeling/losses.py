"""Training losses: next-token cross-entropy and the router's load balance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from . import ops
from .packing import host_array, whole_numbers

IGNORED = -100


def language_model_loss(logits: Tensor, labels: Any, num_items_in_batch: Any = None) -> Tensor:
    """Mean cross-entropy of logits `[B, T, V]` at t against labels `[B, T]` at t + 1; labels of -100 do not count.

    num_items_in_batch: what the sum is divided by instead of the number of labels that count: those of all batches whose
    gradients are accumulated.
    """
    labels, vocabulary = whole_numbers(labels, "labels"), logits.shape[-1]
    if labels.shape != tuple(logits.shape[:2]):
        raise InputError(f"labels have shape {list(labels.shape)}, expected {list(logits.shape[:2])}")
    if ((labels != IGNORED) & ((labels < 0) | (labels >= vocabulary))).any():
        raise InputError(f"labels must lie in [0, {vocabulary}) or be {IGNORED}; got {labels.min()} to {labels.max()}")
    targets = labels[:, 1:].reshape(-1)
    counted = np.flatnonzero(targets != IGNORED).astype(np.int32)
    if not len(counted):
        raise InputError(f"every label after the first is {IGNORED} (ignored); there is nothing to learn from")
    rows = ops.gather_rows(logits[:, :-1].reshape(-1, logits.shape[-1]), Tensor(counted))
    loss = ops.cross_entropy(rows, Tensor(targets[counted].astype(np.int32)))
    if num_items_in_batch is None:
        return loss
    items = float(host_array(num_items_in_batch))
    if not items >= 1:
        raise InputError(f"num_items_in_batch is {num_items_in_batch}, expected at least 1")
    return loss * (len(counted) / items)


def load_balancing_loss(router_logits: Sequence[Tensor], top_k: int, valid: np.ndarray) -> Tensor:
    """Auxiliary loss of Fedus et al. 2021 ("Switch Transformers", equations 4-6), over all layers together.

    router_logits: one `[B * T, E]` per sparse layer; valid bool `[B, T]`, padding does not count.
    """
    if not router_logits:
        raise InputError("output_router_logits was asked for, but this model has no layer with experts")
    mask = Tensor(valid.reshape(-1).astype(np.float32))
    loads = [ops.expert_load(logits, top_k, mask) for logits in router_logits]
    rows = float(valid.sum()) * len(loads)
    assigned: Any = sum((load[0] for load in loads[1:]), loads[0][0]) / rows
    probability: Any = sum((load[1] for load in loads[1:]), loads[0][1]) / rows
    return (assigned * probability).sum() * router_logits[0].shape[-1]


def training_losses(
    config: Any,
    logits: Tensor,
    labels: Any,
    router_logits: Sequence[Tensor] | None,
    valid: np.ndarray,
    num_items_in_batch: Any = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The loss of a decoder and the router's auxiliary loss, weighted into it; None where not requested.

    config: the stack's, for `num_experts_per_tok` and `router_aux_loss_coef`; labels int `[B, T]`;
    num_items_in_batch: see `language_model_loss`.
    """
    aux_loss = None if router_logits is None else load_balancing_loss(router_logits, config.num_experts_per_tok, valid)
    if labels is None:
        return None, aux_loss
    loss = language_model_loss(logits, labels, num_items_in_batch)
    return loss if aux_loss is None else loss + config.router_aux_loss_coef * aux_loss, aux_loss

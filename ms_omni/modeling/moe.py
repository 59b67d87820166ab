"""Sparse mixtures of experts: the thinker's, and the talker's with a shared expert behind a sigmoid gate."""

from typing import Any

import mindspore as ms
from mindspore import Tensor

from ..quantised import Quantised
from . import ops
from .layer import Cell, Layer, identity, parameter
from .layers import GatedMLP, Linear


class Experts(Layer):
    """All experts of one block, stacked: gate_up `[E, D, 2I]` (gate and up side by side) and down `[E, I, D]`.

    The layout is `[expert, in, out]`, the one that grouped matrix products take; of codes it is `[expert, out, in]`, as everywhere.
    first: the number of this rank's first expert, where ranks share them.
    """

    first = None
    matrices = ("gate_up", "down")

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up = parameter(num_experts, hidden_size, 2 * intermediate_size)
        self.down = parameter(num_experts, intermediate_size, hidden_size)

    def operands(self) -> tuple[ops.Matrix, ops.Matrix]:
        gate_up, down = self.source(self.gate_up), self.source(self.down)
        if "gate_up" in self.coded:
            gate_up = Quantised(gate_up, self.source(self.gate_up_scale), self.source(self.gate_up_offset))
        if "down" in self.coded:
            down = Quantised(down, self.source(self.down_scale), self.source(self.down_offset))
        return gate_up, down

    def outputs_first(self, name: str) -> tuple[int, ...]:
        experts, inputs, outputs = getattr(self, name).shape
        return experts, outputs, inputs

    @property
    def dtype(self) -> ms.Type:
        return self.down.dtype if self.as_computed else self.computed

    def construct(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        return ops.experts(x, *self.operands(), weights, indices, self.first)


class SparseMoeBlock(Cell):
    """Top-k mixture of experts, `[B, S, D]` -> `[B, S, D]`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.reduce = identity  # sums the experts of all ranks under an expert-parallel plan

    def construct(self, x: Tensor, router_logits: list[Tensor] | None = None) -> Tensor:
        """router_logits: a list that the router's logits `[B * S, E]` are appended to, or None."""
        rows = x.reshape(-1, x.shape[-1])  # [N, D]
        logits = self.gate(rows)
        if router_logits is not None:
            router_logits.append(logits)
        weights, indices = ops.route_topk(logits, self.top_k, self.norm_topk_prob)
        return self.reduce(self.experts(rows, weights, indices)).reshape(x.shape)


class SharedExpertMoeBlock(SparseMoeBlock):
    """A mixture of experts plus one expert for every token, weighted by a sigmoid gate."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shared_expert = GatedMLP(config.hidden_size, config.shared_expert_intermediate_size, config.hidden_act)
        self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False)

    def construct(self, x: Tensor, router_logits: list[Tensor] | None = None) -> Tensor:
        gate = ops.sigmoid(self.shared_expert_gate(x))  # [B, S, 1]
        return super().construct(x, router_logits) + self.shared_expert(x) * gate

"""What the text stacks share: attention sizes, which layers have experts, checks on both."""

import dataclasses
from collections.abc import Callable

from .fields import choice, flag, integer, integers, number, shown
from .rope import check_mrope_section, normalise_rope
from .section import ConfigSection

GATED_ACTIVATIONS = ("silu",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ConfigSection):
    """Attention stack: `num_attention_heads` query heads share `num_key_value_heads` key/value heads of `head_dim`."""

    hidden_size: int = integer()
    intermediate_size: int = integer()
    num_hidden_layers: int = integer()
    num_attention_heads: int = integer()
    num_key_value_heads: int = integer()
    head_dim: int = integer()
    hidden_act: str = choice(*GATED_ACTIVATIONS)
    rms_norm_eps: float = number()
    rope_theta: float = number()
    max_position_embeddings: int = integer()
    attention_bias: bool = flag(default=False)

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """Rope spellings, and head_dim = hidden_size / num_attention_heads where it is not written."""
        data = normalise_rope(data, report)
        hidden, heads = data.get("hidden_size"), data.get("num_attention_heads")
        if data.get("head_dim") is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            data.pop("head_dim", None)
            if hidden % heads:
                report("head_dim", f"missing, and hidden_size {hidden} is no multiple of num_attention_heads {heads}")
            data["head_dim"] = max(hidden // heads, 1)
        return data

    def check(self) -> list[tuple[str, str]]:
        """Heads divide, and rotary halves exist."""
        problems = []
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                (
                    "num_key_value_heads",
                    f"got {self.num_key_value_heads}, expected a divisor of "
                    f"num_attention_heads = {self.num_attention_heads}",
                )
            )
        if self.head_dim % 2:
            problems.append(("head_dim", f"got {self.head_dim}, expected an even number (rotary halves)"))
        return problems

    def published(self) -> dict:
        """Rope goes back into the published spelling: rope_theta, and rope_scaling with the sections."""
        out = super().published()
        section = out.pop("mrope_section", None)
        if section is not None:
            out["rope_scaling"] = {
                "rope_type": "default",
                "type": "default",
                "mrope_section": section,
                "interleaved": True,
                "mrope_interleaved": True,
            }
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeDecoderConfig(DecoderConfig):
    """A decoder whose layers route each token to `num_experts_per_tok` of `num_experts` experts.

    Layer n is dense (`intermediate_size`) when it is in `mlp_only_layers` or (n + 1) % `decoder_sparse_step` != 0.
    """

    vocab_size: int = integer()
    num_experts: int = integer()
    num_experts_per_tok: int = integer()
    moe_intermediate_size: int = integer()
    norm_topk_prob: bool = flag()
    decoder_sparse_step: int = integer(default=1)
    mlp_only_layers: tuple[int, ...] = integers(default=())
    mrope_section: tuple[int, ...] = integers(low=0)
    router_aux_loss_coef: float = number(default=0.001, positive=False)

    def is_sparse_layer(self, layer: int) -> bool:
        """Whether layer number `layer` has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """As the decoder's; a sliding window that is switched on is not supported here."""
        data = super().normalise(data, report)
        if data.get("sliding_window") is not None and data.get("use_sliding_window", True):
            report("sliding_window", f"got {shown(data['sliding_window'])}, expected null (full attention)")
        return data

    def check(self) -> list[tuple[str, str]]:
        """Routing sizes, dense layers that exist, sections that fit the head."""
        problems = super().check() + check_mrope_section(self.mrope_section, self.head_dim)
        if self.num_experts_per_tok > self.num_experts:
            problems.append(
                (
                    "num_experts_per_tok",
                    f"got {self.num_experts_per_tok}, expected at most num_experts = {self.num_experts}",
                )
            )
        beyond = [layer for layer in self.mlp_only_layers if layer >= self.num_hidden_layers]
        if beyond:
            problems.append(
                (
                    "mlp_only_layers",
                    f"got layers {beyond}, expected numbers below num_hidden_layers = {self.num_hidden_layers}",
                )
            )
        return problems

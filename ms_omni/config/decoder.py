"""What the text stacks share: attention sizes, which layers have experts, checks on both."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Field

from . import fields
from .rope import RotarySection, interleaved_sections


class DecoderConfig(RotarySection):
    """Attention stack: `num_attention_heads` query heads share `num_key_value_heads` key/value heads of `head_dim`."""

    hidden_size: fields.Width
    intermediate_size: fields.Width
    num_hidden_layers: fields.Layers
    num_attention_heads: fields.Heads
    num_key_value_heads: fields.Heads
    head_dim: fields.Width
    hidden_act: Annotated[str, fields.choice("silu")]
    rms_norm_eps: fields.Positive
    max_position_embeddings: fields.Positions
    attention_bias: fields.Flag = False

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """Rope spellings, and head_dim = hidden_size / num_attention_heads where it is not written."""
        data = super().normalise(data, report)
        hidden, heads = fields.whole(data.get("hidden_size")), fields.whole(data.get("num_attention_heads"))
        if data.get("head_dim") is None:
            data.pop("head_dim", None)
            if cls.model_fields["head_dim"].is_required() and _usable(hidden) and _usable(heads):
                if hidden % heads:
                    report("head_dim", f"missing, and hidden_size {hidden} is no multiple of num_attention_heads {heads}")
                data["head_dim"] = max(hidden // heads, 1)
        return data

    @classmethod
    def defaults(cls, given: dict) -> dict:
        """As published; what follows from other sizes (head_dim, mrope_section) follows from those that are given."""
        found = super().defaults(given)
        if given.get("hidden_size") or given.get("num_attention_heads"):
            found = cls.normalise({**found, **given, "head_dim": given.get("head_dim")}, lambda key, message: None)
        head_dim = fields.whole(given.get("head_dim", found.get("head_dim")))
        if "mrope_section" in found and _usable(head_dim):
            found["mrope_section"] = interleaved_sections(head_dim)
        return found

    def _changes(self) -> dict:
        changes = super()._changes()
        if changes and "head_dim" not in self._content:  # else the reader would work it out anew, of changed sizes
            changes["head_dim"] = self.head_dim
        return changes

    def check(self) -> Iterator[tuple[str, str]]:
        """Heads divide, and rotary halves exist."""
        if self.num_attention_heads % self.num_key_value_heads:
            yield self.got("num_key_value_heads", f"a divisor of num_attention_heads = {self.num_attention_heads}")
        if self.head_dim % 2:
            yield self.got("head_dim", "an even number (rotary halves)")


def _usable(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0


class MoeDecoderConfig(DecoderConfig):
    """A decoder whose layers route each token to `num_experts_per_tok` of `num_experts` experts.

    Layer n is dense (`intermediate_size`) when it is in `mlp_only_layers` or (n + 1) % `decoder_sparse_step` != 0.
    """

    vocab_size: fields.Vocabulary
    num_experts: fields.Experts
    num_experts_per_tok: fields.Experts
    moe_intermediate_size: fields.Width
    norm_topk_prob: fields.Flag
    decoder_sparse_step: fields.Layers = 1
    mlp_only_layers: fields.LayerNumbers = Field(default_factory=list)
    mrope_section: fields.Sections
    router_aux_loss_coef: fields.NotNegative = 0.001

    def is_sparse_layer(self, layer: int) -> bool:
        """Whether layer number `layer` has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """As the decoder's; no list of dense layers is an empty one."""
        data = super().normalise(data, report)
        if data.get("mlp_only_layers", ()) is None:
            del data["mlp_only_layers"]
        return data

    def check(self) -> Iterator[tuple[str, str]]:
        """Routing sizes, dense layers that exist, sections that fit the head, full attention."""
        yield from super().check()
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            yield self.got("mrope_section", f"three numbers that sum to head_dim / 2 = {self.head_dim / 2:g}")
        if self.num_experts_per_tok > self.num_experts:
            yield self.got("num_experts_per_tok", f"at most num_experts = {self.num_experts}")
        beyond = [layer for layer in self.mlp_only_layers if layer >= self.num_hidden_layers]
        if beyond:
            expected = f"numbers below num_hidden_layers = {self.num_hidden_layers}"
            yield "mlp_only_layers", f"got layers {beyond}, expected {expected}"
        if getattr(self, "sliding_window", None) is not None and getattr(self, "use_sliding_window", True):
            yield self.got("sliding_window", "null (full attention)")

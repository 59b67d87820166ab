"""What the text decoders share: rotary positions, attention sizes, which layers have experts, and checks on them.

Rotary settings come in the forms that different versions of transformers write:

4.57 and the published files:  "rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "mrope_section": [...]}
5.x:                           "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [...]}
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ms_omni.errors import ConfigError

from . import fields
from .section import ConfigSection

PLAIN_TYPES = ("default", "mrope")  # "mrope" is the older name of the default type with sections


def normalise_rope(data: dict, report: Callable[[str, str], None], types: tuple[str, ...] = PLAIN_TYPES) -> dict:
    """Put `rope_theta` and `mrope_section` at the top of `data`, whichever form they came in.

    Rope types that rescale frequencies, partial rotation and sections that are not interleaved would change the model
    and are reported as unsupported.
    """
    for key in ("rope_parameters", "rope_scaling"):
        settings = data.get(key)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            report(key, f"got {fields.shown(settings)}, expected an object")
            continue
        _check_settings(key, settings, types, report)
        for name in ("rope_theta", "mrope_section"):
            if settings.get(name) is None:
                continue
            if data.get(name) is not None and data[name] != settings[name]:
                report(
                    name,
                    f"got {fields.shown(data[name])}, but {key} says {fields.shown(settings[name])}; expected one value",
                )
            data[name] = settings[name]
    return data


def _check_settings(key: str, settings: Mapping, types: tuple[str, ...], report: Callable[[str, str], None]) -> None:
    for name in ("rope_type", "type"):
        if settings.get(name, types[0]) not in (*types, None):
            report(
                f"{key}.{name}",
                f"got {fields.shown(settings[name])}, expected {fields.shown(types[0])} (no other type is supported)",
            )
    for name in ("interleaved", "mrope_interleaved"):
        if settings.get(name, True) is not True:
            report(f"{key}.{name}", f"got {fields.shown(settings[name])}, expected true (sections are always interleaved)")
    if settings.get("partial_rotary_factor", 1) not in (1, None):
        report(f"{key}.partial_rotary_factor", f"got {fields.shown(settings['partial_rotary_factor'])}, expected 1")


def interleaved_sections(head_dim: int) -> list[int]:
    """The sections that transformers falls back to, [24, 20, 20], cut off at the `head_dim / 2` pairs of a smaller head."""
    pairs = head_dim // 2
    height, width = (len(range(axis, min(3 * 20, pairs), 3)) for axis in (1, 2))
    return [pairs - height - width, height, width]


class RotarySection(ConfigSection):
    """A stack with rotary positions, whose settings have two other spellings."""

    rope_types: ClassVar[tuple[str, ...]] = PLAIN_TYPES

    rope_theta: fields.Positive

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """The settings where the fields stand, whichever form they came in."""
        return normalise_rope(data, report, cls.rope_types)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5.x writes them; a new dict each time, to be set as a whole."""
        return {"rope_theta": self.rope_theta, "rope_type": self.rope_types[0], **(self.rope_scaling or {})}

    @rope_parameters.setter
    def rope_parameters(self, settings: Mapping[str, Any] | None) -> None:
        """Raises ConfigError."""
        problems: list[str] = []
        data = self.normalise({"rope_parameters": settings}, lambda key, message: problems.append(f"{key}: {message}"))
        if problems:
            raise ConfigError(f"the new value is not usable in {type(self).__name__}:\n  " + "\n  ".join(problems))
        self.update({key: value for key, value in data.items() if key in type(self).model_fields})

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The sections of multimodal positions as 4.57 and the published files write them; None without."""
        sections = getattr(self, "mrope_section", None)
        if sections is None:
            return None
        kinds = {"rope_type": "default", "type": "default"}
        return {**kinds, "mrope_section": list(sections), "interleaved": True, "mrope_interleaved": True}

    @rope_scaling.setter
    def rope_scaling(self, settings: Mapping[str, Any] | None) -> None:
        self.rope_parameters = settings

    def _values(self) -> dict:
        """Rope goes back into the published spelling: rope_theta, and rope_scaling with the sections."""
        values = super()._values()
        if values.pop("mrope_section", None) is not None:
            values["rope_scaling"] = self.rope_scaling
        return values

    def _changes(self) -> dict:
        changes, written = super()._changes(), self._content.get("rope_parameters")
        if written is not None and changes.keys() & {"rope_theta", "rope_scaling"}:
            sections = changes.pop("rope_scaling", None) or {}  # all settings stay where the file has them
            changes["rope_parameters"] = {**written, **sections, "rope_theta": self.rope_theta}
        return changes


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
        values = super().defaults(given)
        if given.get("hidden_size") or given.get("num_attention_heads"):
            values = cls.normalise({**values, **given, "head_dim": given.get("head_dim")}, lambda key, message: None)
        head_dim = fields.whole(given.get("head_dim", values.get("head_dim")))
        if "mrope_section" in values and _usable(head_dim):
            values["mrope_section"] = interleaved_sections(head_dim)
        return values

    def _changes(self) -> dict:
        changes = super()._changes()
        if changes and "head_dim" not in self._content:  # else a reader would compute it from the changed sizes
            changes["head_dim"] = self.head_dim
        return changes

    def check(self) -> Iterator[tuple[str, str]]:
        """Heads divide, and rotary halves exist."""
        if self.num_attention_heads % self.num_key_value_heads:
            yield self.mismatch("num_key_value_heads", f"a divisor of num_attention_heads = {self.num_attention_heads}")
        if self.head_dim % 2:
            yield self.mismatch("head_dim", "an even number (rotary halves)")


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
            yield self.mismatch("mrope_section", f"three numbers that sum to head_dim / 2 = {self.head_dim / 2:g}")
        if self.num_experts_per_tok > self.num_experts:
            yield self.mismatch("num_experts_per_tok", f"at most num_experts = {self.num_experts}")
        beyond = [layer for layer in self.mlp_only_layers if layer >= self.num_hidden_layers]
        if beyond:
            expected = f"numbers below num_hidden_layers = {self.num_hidden_layers}"
            yield "mlp_only_layers", f"got layers {beyond}, expected {expected}"
        if getattr(self, "sliding_window", None) is not None and getattr(self, "use_sliding_window", True):
            yield self.mismatch("sliding_window", "null (full attention)")

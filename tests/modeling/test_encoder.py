"""The encoders' layers as the one operator that Ascend has for them, on emulated kernels, beside the layers themselves."""

import copy

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling import ops
from ms_omni.modeling.audio_encoder import AudioEncoder
from ms_omni.modeling.ops.reference import Reference
from ms_omni.modeling.vision_encoder import VisionEncoder


class Sight:
    """An encoder, and all that it makes of some input."""

    def __init__(self, config):
        self.encoder = VisionEncoder(config.copy(hidden_size=3 * 36, num_heads=3))  # heads that the kernels do not take
        self.layers, self.changed = (
            self.encoder.blocks,
            ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "norm2.bias"),
        )
        self.pixels = np.random.default_rng(1).standard_normal((40, self.encoder.patch_embed.width), np.float32)

    def __call__(self):
        result = self.encoder(Tensor(self.pixels), np.array([[1, 4, 4], [2, 2, 6]]), output_hidden_states=True)
        return result.last_hidden_state, result.pooler_output, *result.deepstack_features, *result.hidden_states


class Hearing:
    def __init__(self, config):
        self.encoder, self.layers = AudioEncoder(config), None
        self.layers = self.encoder.layers
        self.changed = ("self_attn.q_proj.weight", "self_attn.k_proj.bias", "self_attn.out_proj.weight", "fc2.bias")
        self.sound = np.random.default_rng(1).standard_normal((config.num_mel_bins, 430), np.float32)

    def __call__(self):
        result = self.encoder(self.sound, np.array([230, 200]), output_hidden_states=True)
        return result, *result.hidden_states


@pytest.fixture(params=[Sight, Hearing])
def one(request, ascend, tiny_model):
    config = tiny_model.config.thinker_config
    made = request.param(config.vision_config if request.param is Sight else config.audio_config)
    rng = np.random.default_rng(2)
    for parameter in made.encoder.get_parameters():
        parameter.set_data(Tensor(rng.standard_normal(parameter.shape).astype(np.float32) * np.float32(0.3)))
    made.encoder.set_train(False)
    return made


def check(one, ascend, use_operators):
    """The layers fused, and by themselves."""
    result = one()
    assert one.encoder.prepared is not None
    use_operators(Reference)
    for ours, theirs in zip(result, one(), strict=True):
        np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), rtol=0, atol=1e-4 * np.abs(theirs.asnumpy()).max())
    assert one.encoder.prepared is None
    use_operators(ascend)


def test_states_are_those_of_the_layers(one, ascend, use_operators):
    check(one, ascend, use_operators)


def test_on_a_device_that_has_none_of_the_kernels(one, ascend, use_operators):
    names = ("linear", "layer_norm", "add_layer_norm", "rotary_wide", "packed_attention", "transpose", "gelu", "gelu_tanh")
    without = type("Without", (ascend,), {name: vars(Reference)[name] for name in names})
    use_operators(without)
    check(one, without, use_operators)


def test_weights_are_made_once_and_anew_when_they_are_set(one, ascend, use_operators):
    one()
    packed = [part for layer in one.encoder.prepared.attention for part in layer]
    before = [part.current().asnumpy().copy() for part in packed]
    one()
    assert all(a is b for a, b in zip(packed, (part for layer in one.encoder.prepared.attention for part in layer)))
    parameters = one.layers[1].parameters_dict()
    for name in one.changed:
        (parameter,) = (value for key, value in parameters.items() if key.endswith(name))
        parameter.set_data(Tensor(-1.5 * parameter.asnumpy()))
    check(one, ascend, use_operators)
    differs = [(part.current().asnumpy() != old).any() for part, old in zip(packed, before)]
    assert differs == [number in (3, 4, 5) for number in range(len(packed))]


def test_a_parameter_that_another_took_the_place_of(one, ascend, use_operators):
    one()
    linear = one.layers[0].mlp.linear_fc1 if isinstance(one, Sight) else one.layers[0].self_attn.k_proj
    linear.weight = ms.Parameter(Tensor(-linear.weight.asnumpy()), name=linear.weight.name)
    check(one, ascend, use_operators)


def test_what_is_made_is_no_part_of_the_model(one):
    names = [*one.encoder.parameters_dict()]
    one()
    assert one.encoder.prepared is not None
    assert [*one.encoder.parameters_dict()] == names
    assert [name for name, _ in one.encoder.cells_and_names() if "prepared" in name] == []


def test_the_layers_run_where_something_about_them_is_different(one, monkeypatch):
    one()
    layer = one.layers[1]
    norm = layer.norm1 if isinstance(one, Sight) else layer.final_layer_norm
    monkeypatch.setattr(norm, "source", lambda parameter: parameter)  # a plan that keeps it in pieces
    one()
    assert one.encoder.prepared is None
    monkeypatch.undo()
    one()
    assert one.encoder.prepared is not None
    attention = layer.attn if isinstance(one, Sight) else layer.self_attn
    attention.__class__ = type("Changed", (type(attention),), {})
    one()
    assert one.encoder.prepared is None


def test_a_gradient_is_taken_of_the_layers(one):
    weight = one.layers[0].parameters_dict()
    weight = next(value for name, value in weight.items() if name.endswith(one.changed[0]))
    gradient = ms.grad(lambda: one()[0].sum(), None, weights=[weight])()[0]
    assert one.encoder.prepared is None and np.abs(gradient.asnumpy()).max() > 0
    one()
    assert one.encoder.prepared is not None


def test_copies_have_weights_of_their_own(one):
    one()
    twin = copy.deepcopy(one)
    for parameter in one.encoder.get_parameters():
        parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
    assert not np.abs(one()[0].asnumpy()).max() and np.abs(twin()[0].asnumpy()).max() > 0


def test_without_the_operator_nothing_is_made(one, use_operators):
    use_operators(Reference)
    assert not ops.fuses_encoders()
    one()
    assert one.encoder.prepared is None

"""Models whose matrices stay in bfloat16, are rounded while they are read, or come from a quantised folder."""

import json
import warnings
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from ms_omni import Qwen3OmniMoeCode2Wav as Code2Wav
from ms_omni import Qwen3OmniMoeForConditionalGeneration as Whole
from ms_omni import Qwen3OmniMoeTalkerForConditionalGeneration as Talker
from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker
from ms_omni.checkpoint import convert, read_rank_index
from ms_omni.checkpoint.matching import Fill
from ms_omni.checkpoint.open import open_checkpoint
from ms_omni.checkpoint.safetensors import Entry
from ms_omni.checkpoint.storage import storages, stored_in
from ms_omni.engine.engine import Engine
from ms_omni.errors import CheckpointError, InputError
from ms_omni.loading import Request
from ms_omni.modeling import ops
from ms_omni.outputs import TextDelta
from ms_omni.parallel.export import convert_for_ranks
from ms_omni.quantised import Storage
from ms_omni.tiny import write_tiny_checkpoint
from tests.checkpoint.conftest import rewrite, tensors_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
IDS = np.arange(20, 44)[None]
LAYER = "thinker.model.layers.0."


@pytest.fixture(scope="module", params=["tiny", "odd"])
def geometry(request):
    return request.param


@pytest.fixture(scope="module")
def folder(geometry, tmp_path_factory):
    """A published checkpoint in bfloat16. Tests must not change it."""
    place = tmp_path_factory.mktemp("checkpoints") / geometry
    write_tiny_checkpoint(place, geometry=geometry, seed=6)
    return place


def load(folder, kind=Thinker, **options):
    return kind.from_pretrained(folder, progress=False, compile_steps=False, **options)


def logits(model):
    return model(IDS).logits.asnumpy()


def state(model):
    return {name: parameter.asnumpy() for name, parameter in model.parameters_and_names()}


@pytest.mark.skipif(not ops.keeps_bfloat16(), reason="these operators widen matrices once")
def test_matrices_stay_in_bfloat16_and_give_the_same(folder):
    kept, wide = load(folder, Whole), load(folder, Whole, dtype="float32")
    kinds = {name: parameter.dtype for name, parameter in kept.parameters_and_names()}
    assert kept.dtype == wide.dtype == ms.float32
    assert {kinds[f"{LAYER}{name}"] for name in ("self_attn.o_proj.weight", "self_attn.q_proj.weight")} == {ms.bfloat16}
    assert kinds[f"{LAYER}input_layernorm.weight"] == ms.float32
    assert all(kind == ms.float32 for name, kind in kinds.items() if name.startswith("code2wav"))
    assert kept.get_memory_footprint() < 0.7 * wide.get_memory_footprint()
    assert all((value == state(wide)[name]).all() for name, value in state(kept).items())
    expected = logits(wide.thinker)
    assert np.abs(logits(kept.thinker) - expected).max() < 2e-5 * np.abs(expected).max()
    kept.thinker.float()
    assert {parameter.dtype for parameter in kept.thinker.get_parameters()} == {ms.float32}
    assert (logits(kept.thinker) == expected).all()


def test_a_loaded_model_learns(folder):
    model = load(folder)
    weights = model.train().trainable_params()
    assert {weight.dtype for weight in weights} == {ms.float32}
    loss, gradients = ms.value_and_grad(lambda: model(IDS, labels=IDS).loss, None, weights)()
    assert np.isfinite(loss.asnumpy()) and {gradient.dtype for gradient in gradients} == {ms.float32}


def said(engine):
    """What an engine writes behind `IDS`."""
    engine.add(input_ids=IDS, max_new_tokens=8)
    words = []
    while engine.added:
        words += [event.token.tolist() for _, event in engine.step() if isinstance(event, TextDelta)]
    return words


@pytest.mark.parametrize("when", ["before train", "after train", "no train"])
def test_an_optimizer_holds_the_parameters_that_learn(folder, when):
    model = load(folder)
    engine = Engine(model, max_rows=1, tokens=256)
    first = said(engine)
    everything = list(model.parameters())
    if when == "after train":
        model.train()
    optimizer = nn.Adam(everything, 1e-2)
    if when == "before train":
        model.train()
    step = ms.value_and_grad(lambda: model(IDS, labels=IDS).loss, None, everything)
    losses = []
    for _ in range(3):
        loss, gradients = step()
        assert optimizer(gradients) is not None
        losses.append(float(loss.asnumpy()))
    assert losses[2] < losses[1] < losses[0]
    assert all(own is held for own, held in zip(model.parameters(), everything, strict=True))
    assert {parameter.dtype for parameter in everything} == {ms.float32}
    now = said(engine)  # of an engine that had read the weights before
    assert now != first and now == said(Engine(model, max_rows=1, tokens=256))


def test_zeros_for_what_a_loss_does_not_see_go_into_an_optimizer(folder):
    model = load(folder, Whole)
    everything = model.trainable_params()
    optimizer = nn.Momentum(everything, 1e-2, 0.9)
    gradients = ms.grad(lambda: model.thinker(IDS, labels=IDS).loss, None, everything)()
    assert {gradient.dtype for gradient in gradients} == {ms.float32}
    optimizer(gradients)


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"quantize": "int4", "quantize_embeddings": True}])
def test_rounded_while_it_is_read_as_by_convert(options, folder, geometry, tmp_path):
    if (geometry, options["quantize"]) == ("odd", "int4"):
        with pytest.raises(InputError, match=r"32 divides.*int8"):
            load(folder, **options)
        return
    names = {"quantize": "quantize", "quantize_embeddings": "embeddings"}
    convert(folder, tmp_path / "codes", progress=False, **{names[word]: value for word, value in options.items()})
    model, again = load(folder, **options), load(tmp_path / "codes")
    own, other = state(model), state(again)
    assert own.keys() == other.keys() and all((value == other[name]).all() for name, value in own.items())
    bits = np.uint8 if options["quantize"] == "int4" else np.int8
    assert own["model.layers.0.self_attn.o_proj.weight"].dtype == bits
    assert ("model.embed_tokens.weight_scale" in own) == ("quantize_embeddings" in options)
    assert model.dtype == ms.float32 and (logits(model) == logits(again)).all()

    reader = open_checkpoint(tmp_path / "codes")
    meant = {name: np.array(reader.array(name)) for name in reader.entries if name.startswith("thinker.")}
    expected = logits(load(None, config=model.config, state_dict=meant, dtype="float32"))
    assert np.abs(logits(model) - expected).max() < 5e-5 * np.abs(expected).max()
    convert(tmp_path / "codes", tmp_path / "numbers", progress=False)  # what the codes stand for, in bfloat16
    with pytest.raises(InputError, match="quantised already"):
        load(tmp_path / "codes", quantize="int8")
    with pytest.raises(InputError, match="no gradient"):
        ms.grad(lambda: model(IDS, labels=IDS).loss, None, model.trainable_params())()

    model.save_pretrained(tmp_path / "saved")  # numbers again, under the published names
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again.save_pretrained(tmp_path / "saved again")
    assert "quantization_config" not in json.loads((tmp_path / "saved again" / "config.json").read_text())
    saved = tensors_of(tmp_path / "saved again")
    for name, value in tensors_of(tmp_path / "numbers").items():
        if name.startswith("thinker.") and name.endswith("_proj.weight"):
            assert saved[name.removeprefix("thinker.")].tobytes() == value.tobytes()
    model.resize_token_embeddings(model.config.text_config.vocab_size + 3)
    assert np.abs(logits(model)[..., : expected.shape[-1]] - logits(again)).max() < 1e-5 * np.abs(expected).max()


def test_values_that_mean_nothing(tiny_checkpoint):
    for options in (
        {"quantize": "int2"},
        {"quantize_group": 32},
        {"quantize": "int8", "quantize_group": 32},
        {"quantize": "int4", "quantize_group": 48},
        {"quantize_embeddings": True},
        {"quantize": "int4", "quantize_embeddings": 1},
    ):
        with pytest.raises(InputError, match=r"quantize.* is .*expected"):
            load(tiny_checkpoint.parent / "none", **options)
    with pytest.raises(InputError, match="quantize='int8'"):
        load(tiny_checkpoint, load_in_8bit=True)
    with pytest.raises(InputError, match=r"groups of 128 do not divide"):
        load(tiny_checkpoint, quantize="int4", quantize_group=128)


def test_damaged_codes_are_one_error_each(tmp_path):
    write_tiny_checkpoint(tmp_path / "start", geometry="tiny", seed=6)
    convert(tmp_path / "start", tmp_path / "codes", quantize="int4", progress=False)
    whole = tensors_of(tmp_path / "codes")
    name = LAYER + "self_attn.q_proj.weight"
    experts = LAYER + "mlp.experts.down"
    scales = whole[name + "_scale"]

    def error(**changed):
        tensors = {**whole, **{key: value for key, value in changed.items() if value is not None}}
        for key in [key for key, value in changed.items() if value is None]:
            del tensors[key]
        rewrite(tmp_path / "codes", tensors, metadata={"format": "ms_omni"})
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / "codes")
        return str(caught.value)

    assert f"there is no {name}_scale" in error(**{name + "_scale": None})
    assert f"there is no {experts}_scale" in error(**{experts + "_scale": None})
    assert f"{name}: is U8" in error(**{name + "_scale": scales[:-1]})
    assert f"{name}: is U8" in error(**{name + "_scale": np.zeros((len(scales), 5), scales.dtype)})
    assert f"{name}: is U8" in error(**{name + "_offset": scales[:, :0]})
    assert f"{name}: is U8" in error(**{name + "_scale": scales.astype(np.int32)})
    assert "NaN or infinite" in error(**{name + "_scale": np.full_like(scales, np.nan)})
    rewrite(tmp_path / "codes", whole, metadata={"format": "ms_omni"})
    file = next((tmp_path / "codes").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "codes")


def test_what_is_stored_in_different_ways_loses_nothing(tmp_path):
    """One expert in bfloat16 among codes: the stack has the numbers that all of them stand for, not rounded to bfloat16."""
    fills = [
        Fill("mixed", (2, 64), (("codes", None), ("numbers", None))),
        Fill("codes", (2, 64), (("codes", None),)),
        Fill("kept", (2, 64), (("numbers", None),)),
    ]

    class Reader:
        folder, entries = (
            tmp_path,
            {"codes": Entry("codes", "F32", (2, 64), "", 0, 0), "numbers": Entry("numbers", "BF16", (2, 64), "", 0, 0)},
        )

        def storage(self, name):
            return Storage(8, None, "float16") if name == "codes" else None

    with pytest.warns(UserWarning, match="mixed are stored in different ways, and are held as the numbers"):
        assert storages(fills, Reader(), None, "") == {"codes": Storage(8, None, "float16")}
    assert stored_in(fills, Reader(), "BF16") == {"kept"}


def test_nothing_is_said_where_nothing_is_lost(folder):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(folder)
    assert not [warning for warning in said if "stored in different ways" in str(warning.message)]


def test_parts_have_the_groups_of_the_whole(tmp_path):
    """Also a talker that comes later, and a vocoder, of which nothing is codes."""
    geometry = json.loads((CONFIGS / "tiny.json").read_text())
    geometry["thinker_config"]["text_config"]["moe_intermediate_size"] = 96  # by groups of 32, what the talker has by 64
    write_tiny_checkpoint(tmp_path / "start", geometry=geometry, seed=6)
    whole = load(tmp_path / "start", Whole, quantize="int4")
    kinds = state(whole)
    model = load(tmp_path / "start", Whole, quantize="int4", enable_audio_output=False)
    for _ in range(2):
        model.enable_talker()
        own = state(model)
        assert own.keys() == kinds.keys() and all((value == kinds[name]).all() for name, value in own.items())
        model.disable_talker()
    alone = state(load(tmp_path / "start", Talker, quantize="int4"))
    assert all((value == kinds["talker." + name]).all() for name, value in alone.items())
    assert load(tmp_path / "start", Code2Wav, quantize="int8").dtype == ms.float32
    assert whole.num_parameters() == load(tmp_path / "start", Whole).num_parameters()


def test_files_of_ranks_are_not_rounded_while_they_are_read(tiny_checkpoint, tmp_path):
    convert_for_ranks(tiny_checkpoint, tmp_path / "cut", 2, "ep", progress=False)
    request = Request(tmp_path / "cut", {}, {}, quantize="int8")
    with pytest.raises(InputError, match=r"cut for ranks.*leave quantize= out"):
        Thinker._plan(
            Thinker._configuration(tmp_path / "cut", request), tmp_path / "cut", request, read_rank_index(tmp_path / "cut")
        )


@pytest.fixture(scope="module")
def coded(tiny_checkpoint):
    return load(tiny_checkpoint, quantize="int8")


def test_numbers_do_not_replace_codes_when_saving(coded, tmp_path):
    matrix = "model.layers.0.self_attn.q_proj.weight"
    for name in (matrix, matrix + "_scale"):
        value = coded.get_parameter(name).astype(ms.float32)
        with pytest.raises(InputError, match=rf"{name}, stored as codes.*without quantize="):
            coded.save_pretrained(tmp_path / "saved", state_dict={name: value})
    assert not (tmp_path / "saved").exists()
    norm = "model.norm.weight"
    coded.save_pretrained(tmp_path / "saved", state_dict={norm: coded.get_parameter(norm) * 2})
    assert (load(tmp_path / "saved").get_parameter(norm).asnumpy() == 2 * coded.get_parameter(norm).asnumpy()).all()


def test_gradients_pass_through_a_frozen_model_of_codes(coded):
    prompt = Parameter(Tensor(np.zeros((1, 24, coded.config.text_config.hidden_size), np.float32)), name="prompt")
    rows = coded.get_input_embeddings()(Tensor(IDS))

    def loss():
        return coded(inputs_embeds=rows + prompt, labels=IDS).loss

    with pytest.raises(InputError, match=r"no gradient.*requires_grad_\(False\)"):
        ms.grad(loss, None, [prompt])()
    coded.requires_grad_(False)
    (gradient,) = ms.grad(loss, None, [prompt])()
    start, step = float(loss().asnumpy()), 1e-4
    prompt.set_data(prompt - gradient * step)
    assert float(loss().asnumpy()) - start == pytest.approx(-step * float((gradient**2).sum().asnumpy()), rel=0.1)
    coded.requires_grad_()
    names = {parameter.name for parameter in coded.trainable_params()}
    assert "model.norm.weight" in names and not {"model.layers.0.mlp.experts.down", "lm_head.weight_scale"} & names

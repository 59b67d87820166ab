"""Checkpoints in the layouts of other tools: the bytes that they wrote, the numbers and the logits that they give."""

import json
import warnings

import numpy as np
import pytest

import ms_omni
from ms_omni.checkpoint import convert, load_checkpoint
from ms_omni.checkpoint.open import open_checkpoint
from ms_omni.checkpoint.reader import CheckpointReader
from ms_omni.quantised import Storage, dequantised
from tests.checkpoint.conftest import lazy
from tests.reference import published_cases as cases
from tests.reference.store import DATA, Reference

GROUPS_OF_16_BITS = {"scale": "float16"}
KEPT = {  # how each is kept; None: dequantised
    "auto_round": Storage(4, 32, "float16"),
    "auto_round_8": Storage(8, 32, "float16"),
    "auto_round_gptqmodel": Storage(4, 32, "float16", "float32"),
    "auto_gptq_asymmetric": Storage(4, 32, "float16", "float32"),
    "auto_round_awq": Storage(4, 32, "float16", "float32"),
    "packed": Storage(4, 32),
    "packed_asymmetric": Storage(4, 32, offset="float32"),
    "packed_8": Storage(8),
    "packed_8_asymmetric": Storage(8, 32, offset="float32"),
    "int_quantized": Storage(8),
    "float_quantized": None,
    "float_quantized_block": None,
    "fp8_blocks": None,
    "mlx_4": Storage(4, 32, offset="float32"),
    "mlx_8": Storage(8, 32, offset="float32"),
}


@pytest.fixture(scope="module")
def reference():
    return Reference(DATA / "published.npz")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "base"
    cases.write_base(folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory, reference, base):
    """Folders of cases, each made once."""
    root, made = tmp_path_factory.mktemp("cases"), {}

    def folder(case):
        if case not in made:
            made[case] = root / case
            cases.write(case, reference, base, made[case])
        return made[case]

    return folder


def opened(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_checkpoint(folder)


def logits(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ms_omni.Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(folder, **options)
    ids = cases.token_ids()
    out = model(input_ids=ids, attention_mask=np.ones_like(ids)).logits.asnumpy()
    return out[0, :, :: out.shape[-1] // 32]


def test_every_recorded_case_is_tested(reference):
    assert set(KEPT) == set(reference.notes)


@pytest.mark.parametrize("case", KEPT)
def test_numbers_are_those_of_the_tool(case, reference, base, written):
    reader, plain = opened(written(case)), CheckpointReader(base)
    assert {name: entry.shape for name, entry in reader.entries.items()} == {
        name: entry.shape for name, entry in plain.entries.items()
    }
    recorded, at = reference[f"{case}/weights"], 0
    for module in cases.modules(plain.entries):
        name = f"{module}.weight"
        assert reader.storage(name) == KEPT[case]
        array = reader.array(name).astype(np.float32)
        expected = recorded[at : at + 32]
        at += 32
        assert reader.entries[name].dtype == ("F32" if KEPT[case] else "BF16")  # that of the model, for what is dequantised
        rounding = 1e-6 if KEPT[case] else 2**-8
        np.testing.assert_allclose(cases.sampled(array), expected, rtol=rounding, atol=1e-8)
        if KEPT[case] is not None:
            exact = dequantised(reader.codes(name))
            np.testing.assert_array_equal(exact, array)


@pytest.mark.parametrize("case", KEPT)
def test_logits_are_those_of_the_tool(case, reference, written):
    ours, theirs = logits(written(case)), reference[f"{case}/logits"]
    assert np.abs(theirs - reference["base/logits"]).max() > 0.005  # it matters what is read
    tolerance = 2e-5 if KEPT[case] is not None else 0.06  # dequantised to bfloat16, as the configuration says
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case, ours", [("auto_round", False), ("auto_round", True), ("mlx_4", False)])
def test_a_model_of_codes_is_saved_as_numbers_and_loads_again(case, ours, written, tmp_path):
    """Its config.json says nothing of codes, which it no longer holds."""
    source = written(case)
    if ours:
        source = tmp_path / "ours"
        convert(written(case), source, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ms_omni.Qwen3OmniMoeForConditionalGeneration.from_pretrained(source)
    model.save_pretrained(tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()
    np.testing.assert_allclose(logits(tmp_path / "saved"), logits(source), rtol=0, atol=0.06)  # codes become bfloat16


def test_a_cell_of_numbers_is_filled_from_codes(written):
    reader = opened(written("auto_round"))
    config = ms_omni.Qwen3OmniMoeThinkerForConditionalGeneration.config_class.from_pretrained(written("auto_round"))
    cell = lazy(ms_omni.Qwen3OmniMoeThinkerForConditionalGeneration, config)
    load_checkpoint(cell, written("auto_round"), prefix="thinker.")
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(cell.get_parameter(name).asnumpy(), reader.array(f"thinker.{name}"))


@pytest.mark.parametrize("case", [case for case, kept in KEPT.items() if kept is None])
def test_logits_of_what_is_dequantised_to_float32(case, reference, base, tmp_path):
    cases.write(case, reference, base, tmp_path / case)
    path = tmp_path / case / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}))
    np.testing.assert_allclose(logits(tmp_path / case), reference[f"{case}/logits"], rtol=0, atol=2e-5)

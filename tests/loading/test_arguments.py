"""The table of `from_pretrained`'s words: a meaning, a warning, or a refusal; no model, no MindSpore."""

import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ms_omni import load_arguments
from ms_omni.errors import InputError
from ms_omni.load_arguments import HUB, IDLE, MODEL, PROCESSOR, REFUSED, asked_dtype, check_attention, sort_out
from ms_omni.runtime import dtype_name


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(load_arguments, "_warned", set())


def silently(given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sort_out(given, "Model", **options)


def test_what_has_no_effect_is_said_once_in_one_warning():
    given = {"device_map": "auto", "trust_remote_code": True, "offload_folder": "x", "max_memory": {0: "9GB"}}
    with pytest.warns(UserWarning) as caught:
        assert sort_out(given, "Model") == ({}, {})
    assert len(caught) == 1 and caught[0].filename == __file__
    assert all(word in str(caught[0].message) for word in given)
    silently(given)
    with pytest.warns(UserWarning, match=r"^from_pretrained: without effect here: use_fast \(.*\)$"):
        sort_out({**given, "use_fast": True}, "Processor")


@pytest.mark.parametrize("word", sorted({*IDLE, *REFUSED, *MODEL, *PROCESSOR}))
def test_a_word_that_says_nothing_is_taken_in_silence(word):
    assert silently({word: None}) == ({}, {})
    if word not in load_arguments.TYPES and word != "use_safetensors":
        assert silently({word: False}) == ({}, {})


def test_pickles_are_not_read():
    assert silently({"use_safetensors": True}) == ({}, {})
    with pytest.warns(UserWarning, match="use_safetensors \\(safetensors are read\\)"):
        sort_out({"use_safetensors": False}, "Model")


def test_what_is_done_anyway_is_taken_in_silence():
    assert silently({"low_cpu_mem_usage": True, "resume_download": True, "weights_only": True}) == ({}, {})


@pytest.mark.parametrize("word", sorted(REFUSED))
def test_what_would_change_answers_is_refused_by_name(word):
    with pytest.raises(InputError, match=f"Model.from_pretrained: {word} is 'x', but "):
        sort_out({word: "x"}, "Model")


@pytest.mark.parametrize("place", ["meta", {"": "meta"}])
def test_a_place_without_weights_is_refused(place):
    with pytest.raises(InputError, match="which would load no weights"):
        sort_out({"device_map": place}, "Model")


@pytest.mark.parametrize(
    "word, close",
    [("devicemap", "device_map"), ("torch_dtyp", "torch_dtype"), ("revison", "revision"), ("my_key", "my_kez")],
)
def test_an_unknown_word_names_a_close_one(word, close):
    with pytest.raises(InputError, match=f"Model.from_pretrained has no argument '{word}'; did you mean '{close}'?"):
        sort_out({word: 1}, "Model", keys=["my_kez"])
    with pytest.raises(InputError, match="no argument 'xqzw'$"):
        sort_out({"xqzw": 1}, "Model")


def test_words_with_a_meaning():
    given = {"dtype": "auto", "variant": None, "own": 3, "cache_dir": Path("c"), "use_auth_token": "t", "token": None}
    assert silently(given, meant=MODEL, keys=["own"]) == (
        {"cache_dir": Path("c"), "token": "t"},
        {"dtype": "auto", "variant": None, "own": 3},
    )
    assert set(HUB) & set(MODEL) == set(MODEL) & set(PROCESSOR) == set()


@pytest.mark.parametrize(
    "given",
    [
        {"revision": 3},
        {"subfolder": 1},
        {"proxies": "http://p"},
        {"token": 4},
        {"force_download": "no"},
        {"local_files_only": 1},
    ],
)
def test_arguments_of_the_hub_have_types(given):
    with pytest.raises(InputError, match="expected"):
        sort_out(given, "Model")


# -- dtypes --------------------------------------------------------------------------------------------------------------


class TorchLike:
    """A dtype of another library, known by what it prints."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


@pytest.mark.parametrize(
    "dtype, name",
    [
        (None, None),
        ("auto", None),
        ("float32", "float32"),
        ("bf16", "bfloat16"),
        ("half", "float16"),
        ("torch.bfloat16", "bfloat16"),
        (TorchLike("torch.float16"), "float16"),
        (TorchLike("BFloat16"), "bfloat16"),
        (np.float32, "float32"),
        (np.dtype("float16"), "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        ({"thinker_config": "bfloat16", "": "torch.bfloat16"}, "bfloat16"),
    ],
)
def test_dtypes(dtype, name):
    assert dtype_name(dtype) == name


@pytest.mark.parametrize(
    "dtype", ["int8", "float8_e4m3fn", TorchLike("torch.float64"), 3, True, {"a": "half", "b": "float"}, {}]
)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InputError, match="dtype"):
        dtype_name(dtype)


def test_one_dtype_under_several_names():
    options = {"dtype": "bf16", "torch_dtype": "torch.bfloat16", "mindspore_dtype": None, "rest": 1}
    assert asked_dtype(options) == "bfloat16" and options == {"rest": 1}
    assert asked_dtype({"mindspore_dtype": TorchLike("Float32")}) == "float32"
    with pytest.raises(InputError, match="dtype is float32, torch_dtype is float16; give one"):
        asked_dtype({"dtype": "float32", "torch_dtype": "half"})


# -- attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        None,
        "eager",
        "sdpa",
        "flash_attention_2",
        "flash_attention_3",
        "flex_attention",
        "paged|sdpa",
        "kernels-community/x",
        {"thinker_config": "sdpa", "": "eager", "vision_config": None},
    ],
)
def test_attention(name):
    options = {"attn_implementation": name, "use_flash_attention_2": True, "experts_implementation": "eager"}
    check_attention(options)
    assert not options


@pytest.mark.parametrize("name", ["sdap", 3, {"thinker_config": "sdap"}])
def test_unknown_attention(name):
    with pytest.raises(InputError, match="attn_implementation is .*expected one of 'eager'"):
        check_attention({"attn_implementation": name})


def test_nothing_heavy_is_imported():
    code = "import sys, ms_omni.load_arguments, ms_omni.hub; assert not {'mindspore', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

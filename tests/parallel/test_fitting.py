"""Folders, memory and places of weights that are stored as codes: what `plan` computes is what is there."""

import json
import re

import pytest

from ms_omni.checkpoint import CheckpointReader
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.checkpoint.storage import scheme
from ms_omni.cli import main
from ms_omni.commands.plan import gb
from ms_omni.config import load_named_config
from ms_omni.parallel.hardware import load_hardware
from ms_omni.parallel.predict import GIB, folder_bytes, in_memory, longest, places, predict, predictions, token_s

LAPTOP_GB_PER_S = 50
NAMES = {"embeddings": "quantize-embeddings"}  # of options of the command


@pytest.fixture(scope="module")
def instruct():
    config = load_named_config("instruct")
    return config, parameter_shapes(config)


@pytest.mark.parametrize("quantize, share", [("int8", 0.54), ("int4", 0.31)])
def test_the_published_folder(instruct, quantize, share):
    _, shapes = instruct
    made = scheme(shapes, quantize)
    assert made.group == (None if quantize == "int8" else 128)
    plain, stored = (sum(folder_bytes(shapes, storages).values()) for storages in ({}, made.storages(shapes)))
    assert plain == 2 * 35_259_818_545 and stored <= share * plain


@pytest.mark.parametrize("quantize, card, laptop", [(None, None, None), ("int8", 64, 64), ("int4", 32, 32)])
def test_the_smallest_places_of_the_published_model(instruct, quantize, card, laptop):
    config, shapes = instruct
    storages = scheme(shapes, quantize).storages(shapes) if quantize else {}
    hardware = load_hardware("910b")
    found = {
        place: predictions(config, shapes, storages, place, 8192, [1])[0] for place in places(hardware, LAPTOP_GB_PER_S)
    }
    fitting = [place for place, item in found.items() if place.fits(item)]
    for smallest, kind in ((card, True), (laptop, False)):
        sizes = [place.bytes // (10**9 if kind else GIB) for place in fitting if place.card is kind]
        assert (sizes[0] if sizes else None) == smallest
    for place, item in found.items():
        tokens = longest(place, item, config, 8192)
        assert tokens % 128 == 0 and (tokens >= 8192) == place.fits(item)
        if 0 < tokens < config.thinker_config.text_config.max_position_embeddings:
            fits, more = (predictions(config, shapes, storages, place, tokens + more, [1])[0] for more in (0, 1))
            assert place.fits(fits) and not place.fits(more)


def test_keys_and_values_in_8_bits(instruct):
    """128 codes and a scale of 4 bytes for 128 numbers of 4 bytes; a card has none."""
    config, shapes = instruct
    card, *_, laptop = places(load_hardware("910b"), LAPTOP_GB_PER_S)
    for place, share in ((laptop, 132 / 512), (card, 1)):
        plain, codes = (predictions(config, shapes, {}, place, 1024, [4], cache)[0] for cache in ("auto", "int8"))
        assert codes.kv_cache == pytest.approx(share * plain.kv_cache) and codes.cached == pytest.approx(
            share * plain.cached
        )


def test_a_token_by_the_bandwidth_of_a_laptop(instruct):
    """3.03 billion parameters, half a byte each with scales of a group of 128, the head's one byte, norms and router beside them."""
    config, shapes = instruct
    hardware, laptop = load_hardware("910b"), places(load_hardware("910b"), LAPTOP_GB_PER_S)[-1]
    (one,) = predictions(config, shapes, scheme(shapes, "int4").storages(shapes), laptop, 1024, [1])
    reads = one.token.reads - one.cached
    assert reads == pytest.approx((1.81e9 + 0.91e9) * (0.5 + 2 / 128) + 0.31e9, rel=0.03)
    assert token_s(laptop, one, hardware, False) == pytest.approx(reads / 50e9)
    assert token_s(laptop, one, hardware, True) == pytest.approx((reads + 1024 * 98_304 * 2) / 50e9)
    whole = predict(config, shapes, "ep", 1, 1024, 4)
    assert one.token.operations == pytest.approx(whole.token.operations)  # codes are multiplied as many times


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_a_model_in_memory(bfloat16_checkpoint, quantize):
    """On a processor matrices lie as in the folder, or as codes; everything else is float32."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration
    from ms_omni.modeling import ops

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(bfloat16_checkpoint, progress=False, quantize=quantize)
    shapes = parameter_shapes(model.config)
    storages = scheme(shapes, quantize).storages(shapes) if quantize else {}
    lying = in_memory(shapes, storages) if ops.keeps_bfloat16() else storages  # without a compiler they are widened
    held = predict(model.config, shapes, "ep", 1, 128, 4, storages=lying).held
    assert held == sum(parameter.nbytes for parameter in model.get_parameters())


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"quantize": "int4", "group": 32, "embeddings": True}])
def test_the_folder_that_convert_writes(bfloat16_checkpoint, options, tmp_path, capsys):
    """Its tensors take what is computed for the configuration; and of the folder `plan` says what it is."""
    from ms_omni.checkpoint import convert

    convert(bfloat16_checkpoint, tmp_path / "small", **options)
    written = CheckpointReader(tmp_path / "small").entries.values()
    config = load_named_config("mini")
    shapes = parameter_shapes(config)
    expected = folder_bytes(shapes, scheme(shapes, *options.values()).storages(shapes))
    assert sum(entry.nbytes for entry in written) == sum(expected.values())
    assert main(["plan", "--model", str(tmp_path / "small")]) == 0
    found = capsys.readouterr().out
    assert "as stored: int8" in found or "as stored: int4 in groups of 32, int8" in found
    arguments = [word for name, value in options.items() for word in (f"--{NAMES.get(name, name)}", str(value))]
    assert main(["plan", "--config", "mini", *filter(lambda word: word != "True", arguments)]) == 0
    computed = [re.sub(r"codes \(.*\)", "codes", text).splitlines()[1:] for text in (found, capsys.readouterr().out)]
    assert computed[0] == computed[1]
    assert main(["plan", "--model", str(tmp_path / "small"), "--quantize", "int8"]) == 1
    assert "is quantised already" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_in_another_dtype(dtype, tmp_path, capsys):
    """What is no codes stays as the folder has it: there, in the folder that is written, and in the memory of a processor."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration
    from ms_omni.checkpoint import convert
    from ms_omni.modeling import ops
    from ms_omni.tiny import write_tiny_checkpoint

    config = write_tiny_checkpoint(tmp_path / "start", dtype=dtype)
    convert(tmp_path / "start", tmp_path / "small", quantize="int8", progress=False)
    written = sum(entry.nbytes for entry in CheckpointReader(tmp_path / "small").entries.values())
    shapes = parameter_shapes(config)
    storages, dtypes = (
        scheme(shapes, "int8").storages(shapes),
        dict.fromkeys(shapes, {"float32": "F32", "float16": "F16"}[dtype]),
    )
    assert sum(folder_bytes(shapes, storages, dtypes).values()) == written
    said = []
    for options in (("start", "--quantize", "int8"), ("small",)):
        assert main(["plan", "--model", str(tmp_path / options[0]), *options[1:]]) == 0
        said.append(re.sub("as stored: ", "", capsys.readouterr().out))
    assert said[0] == said[1] and gb(written) in said[0] and f"int8; what is no codes: {dtype}" in said[0]
    if ops.keeps_bfloat16():
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "small", progress=False)
        held = predict(config, shapes, "ep", 1, 128, 4, storages=in_memory(shapes, storages, dtypes)).held
        assert held == sum(parameter.nbytes for parameter in model.get_parameters())


@pytest.mark.parametrize("said", [None, {"quant_method": "gptq", "bits": 4, "group_size": 32}, {"quant_method": "ms_omni"}])
def test_a_configuration_without_weights(said, tmp_path, capsys):
    """As the settings of a model on a hub are fetched: what is quantised there is not known, and that is said."""
    from ms_omni.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "model")
    for file in (tmp_path / "model").glob("*.safetensors"):
        file.unlink()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "quantization_config": said} if said else config))
    for options in (("--cards", "1"), ("--quantize", "int8")):
        assert main(["plan", "--model", str(tmp_path / "model"), *options]) == 0
        found = capsys.readouterr().out
        assert ("how each is stored is not known" in found) == (said is not None and "--cards" in options)
        assert ("int8; what is no codes: bfloat16" in found) == ("--quantize" in options)


@pytest.fixture(scope="module")
def bfloat16_checkpoint(tmp_path_factory):
    from ms_omni.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("bfloat16") / "mini"
    write_tiny_checkpoint(folder, geometry="mini")
    return folder


def test_what_plan_says(capsys):
    assert main(["plan", "--config", "instruct", "--quantize", "int4", "--group", "64"]) == 0
    found = capsys.readouterr().out
    assert "int4, groups of 64" in found and "computed, not measured" in found
    assert [line.split("GB")[0] for line in found.splitlines() if line.startswith(("laptop", "1 x"))] == [
        *("1 x Ascend, 32 ", "1 x Ascend, 64 ", "laptop, 24 ", "laptop, 32 ", "laptop, 64 ")
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        (("--config", "mini", "--quantize", "int4", "--group", "128"), "groups of 128 do not divide"),
        (("--config", "mini", "--group", "32"), "--group and --quantize-embeddings are for --quantize"),
        (("--config", "mini", "--cards", "1", "--kv-cache-dtype", "int8"), "add --quantize"),
        (("--config", "mini"), "--cards N says on how many cards"),
        (("--config", "mini", "--quantize", "int8", "--laptop-gb-per-s", "0"), "expected a positive number"),
    ],
)
def test_what_plan_refuses(options, said, capsys):
    assert main(["plan", *options]) == 1
    assert said in capsys.readouterr().err

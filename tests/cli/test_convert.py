"""`ms-omni convert`: what its options do, and which of them make no sense together."""

import json

import pytest

from ms_omni.checkpoint.open import open_checkpoint
from ms_omni.quantised import Storage
from ms_omni.tiny import write_tiny_checkpoint
from tests.checkpoint.test_adapter import QUERY, factors, write_adapter

HELP = "--group, --quantize-embeddings and --calibrate say how weights are quantised; add --quantize int8 or int4"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "source"
    write_tiny_checkpoint(folder, shards=1)
    return folder


@pytest.mark.parametrize(
    "options, words",
    [
        (("--group", "64"), HELP),
        (("--quantize-embeddings",), HELP),
        (("--calibrate", "x.txt"), HELP),
        (("--quantize", "int8", "--group", "64"), "group is for int4"),
        (("--quantize", "int4", "--group", "128"), "groups of 128 do not divide"),
        (("--quantize", "int4", "--calibrate", "x.txt", "--adapter", "x"), "merge it first, then calibrate"),
        (("--quantize", "int4", "--calibrate", "nowhere.txt"), "cannot read nowhere.txt"),
        (("--quantize", "int4", "--calibrate", "weights.bin"), "weights.bin: expected a text (.txt, .md), conversations"),
        (("--adapter", "nowhere"), "nowhere has no adapter_config.json"),
        (("--plan", "ep"), "say how many with --shards N"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense(cli, source, tmp_path, options, words):
    code, _, err = cli("convert", source, tmp_path / "out", *options)
    assert code == 1 and words in err and list(tmp_path.iterdir()) == []


def test_quantised_with_an_adapter_inspected_and_back(cli, source, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", factors(QUERY, 128, 64))
    options = ("--quantize", "int4", "--group", "32", "--quantize-embeddings", "--adapter", adapter)
    code, out, _ = cli("convert", source, tmp_path / "small", *options)
    lines = out.decode().splitlines()
    assert code == 0 and "in ms_omni form" in lines[0] and lines[1].endswith("into 1 tensors")
    assert lines[2].startswith("  int4 in groups of 32: ") and "8 bits instead of 4" in lines[3]
    assert open_checkpoint(tmp_path / "small").storage("thinker.model.embed_tokens.weight") == Storage(8)
    code, out, _ = cli("inspect", tmp_path / "small")
    assert code == 0 and b"int4/32" in out and b"bits 4, group_size 32" in out and b"adapter adapter" in out
    code, out, _ = cli("convert", tmp_path / "small", tmp_path / "back")
    assert code == 0 and b"in published form" in out
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    code, _, err = cli("convert", tmp_path / "small", tmp_path / "again", "--quantize", "int8")
    assert code == 1 and "is quantised already" in err


def test_calibrated_by_files_of_every_kind(cli, tmp_path):
    samples = "examples/miniature/samples"
    (tmp_path / "a.txt").write_text("What is 3 plus 4?")
    lines = [
        {"messages": [{"role": "user", "content": "Say a blue star and 17."}]},
        {"custom_id": "1", "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}]}},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = (tmp_path / "a.txt", tmp_path / "b.jsonl", f"{samples}/star.jpg", f"{samples}/digits.wav")
    code, _, err = cli(
        "convert", "examples/miniature", tmp_path / "out", "--quantize", "int4", "--group", "32", "--calibrate", *files
    )
    assert code == 0, err
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["calibration"]
    assert said == {"files": ["a.txt", "b.jsonl", "star.jpg", "digits.wav"], "conversations": 5}

"""`launch/evaluate.py --against`: what changes between two checkpoints is counted, whichever they are."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from launch import comparison
from ms_omni.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def evaluate(monkeypatch, *arguments):
    """What the script wrote with --json, the last of the arguments."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "launch/evaluate.py"), run_name="__main__")
    return json.loads(arguments[-1].read_text())


@pytest.fixture(scope="module")
def sharper(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with its head doubled: logits are twice as large, and the largest stays the largest."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    folder = tmp_path_factory.mktemp("sharper") / "checkpoint"
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
    head = model.thinker.get_parameter("lm_head.weight").value()
    model.save_pretrained(folder, state_dict={"thinker.lm_head.weight": 2 * head})
    for file in Path(tiny_checkpoint).iterdir():
        if not (folder / file.name).exists() and "safetensors" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_random_prompts_to_a_sharper_head(tiny_checkpoint, sharper, monkeypatch, tmp_path, capsys):
    options = ("--prompts", 3, "--prompt-tokens", 8, "--answer-tokens", 5, "--json", tmp_path / "found.json")
    found = evaluate(monkeypatch, "--model", tiny_checkpoint, "--against", sharper, *options)["results"]
    assert found["answers"]["random"] == found["answers"]["all"]
    assert found["answers"]["all"]["same"] == found["answers"]["all"]["count"] == 3 and found["answers"]["all"]["known"] == 0
    assert found["next_token"]["positions"] == 15 and found["next_token"]["greedy_agreement"] == 1
    assert 0 < found["next_token"]["kl_mean"] < found["next_token"]["kl_p99"]
    assert not found["speech"].keys() & {"first", "second"}  # nothing that was said means anything
    said = capsys.readouterr().out
    assert "the same choice at 100.00% of 15 positions" in said and said.count("there are no words to speak") == 2


def test_the_miniature_against_one_that_has_lost_its_head(monkeypatch, tmp_path):
    """The head with its rows in another order says other tokens: nothing is right any more, neither in writing nor in speech."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    folder = tmp_path / "headless"
    source = ROOT / "examples/miniature"
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(source, progress=False)
    head = Tensor(np.roll(model.thinker.get_parameter("lm_head.weight").float().asnumpy(), 1, axis=0))
    model.save_pretrained(folder, state_dict={"thinker.lm_head.weight": head})
    options = (
        "--share",
        0.03,
        "--tasks",
        "sum",
        "digits",
        "round_trip",
        "--round-trips",
        1,
        "--json",
        tmp_path / "found.json",
    )
    found = evaluate(monkeypatch, "--model", source, "--against", folder, *options)
    total = found["results"]["answers"]["all"]
    assert total["first_right"] == total["known"] == total["right_to_wrong"] == 7 and total["second_right"] == 0
    assert {row["task"] for row in found["changed"]} == {"sum", "digits"}
    assert found["results"]["next_token"]["greedy_agreement"] == 0 and found["results"]["next_token"]["kl_mean"] > 1
    spoken = found["results"]["speech"]
    assert spoken["unit"] == "digits" and spoken["first"]["errors"] == 0 < spoken["second"]["errors"]


@pytest.fixture(scope="module")
def silent(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint without its talker."""
    folder = tmp_path_factory.mktemp("silent") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "enable_audio_output": False}))
    return folder


def test_questions_of_ones_own(tiny_checkpoint, silent, monkeypatch, tmp_path, capsys):
    questions = tmp_path / "questions.json"
    rows = [
        {"messages": [{"role": "user", "content": "Hello!"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "And who are you?"}]}], "answer": "nobody"},
        {"messages": [{"role": "user", "content": "???"}]},  # nothing to speak
    ]
    questions.write_text(json.dumps(rows, indent=1))
    options = ("--answer-tokens", 4, "--round-trips", 1, "--questions", questions, "--json", tmp_path / "found.json")
    found = evaluate(monkeypatch, "--model", tiny_checkpoint, "--against", silent, *options)["results"]
    assert found["answers"]["all"]["same"] == 3 and found["answers"]["all"]["known"] == 1
    assert found["next_token"]["kl_mean"] == 0 and found["speech"]["unit"] == "words"
    assert found["speech"]["first"]["count"] == 1 and "second" not in found["speech"]
    assert "in its own ears, second:  left out, it has no talker" in capsys.readouterr().out
    questions.write_text(json.dumps(rows[2:]))
    found = evaluate(monkeypatch, "--model", tiny_checkpoint, "--quantize", "int8", *options)["results"]
    assert found["speech"] == {"unit": "words"}
    for row in ({"messages": "Hello!"}, {"messages": [{"content": "Hello!"}]}, {**rows[1], "answer": 7}):
        questions.write_text(json.dumps(row))
        with pytest.raises(SystemExit, match=r"questions.json, line 1: "):
            evaluate(monkeypatch, "--model", tiny_checkpoint, "--against", silent, *options)


def test_speech_alone(monkeypatch, tmp_path):
    options = ("--tasks", "round_trip", "--round-trips", 1, "--json", tmp_path / "found.json")
    found = evaluate(monkeypatch, "--model", ROOT / "examples/miniature", "--quantize", "int8", *options)["results"]
    assert found["answers"]["all"]["count"] == 0 and found["next_token"] == {}
    assert found["speech"]["first"]["errors"] == found["speech"]["second"]["errors"] == 0 < found["speech"]["first"]["count"]


@pytest.mark.parametrize(
    "options, words",
    [
        ("--questions x.json", "--questions changes nothing in the evaluation of one checkpoint"),
        ("--answer-tokens 4", "--answer-tokens changes nothing in the evaluation of one checkpoint"),
        ("--against DIR --questions x.json --share 0.5", "--share changes nothing in a comparison by --questions"),
        ("--against DIR --questions x.json --tasks sum", "--tasks changes nothing in a comparison by --questions"),
        ("--against DIR --questions x.json --prompts 3", "--prompts changes nothing in a comparison by --questions"),
        ("--against DIR --model DIR --batch 3", "--batch changes nothing in a comparison by random prompts"),
        ("--against DIR --model DIR --round-trips 3", "--round-trips changes nothing in a comparison by random prompts"),
        ("--against DIR --prompts 3", "--prompts changes nothing in a comparison in the miniature's world"),
        (
            "--quantize int8 --reference-python x",
            "--reference-python changes nothing in a comparison in the miniature's world",
        ),
        ("--quantize int8 --tasks sum same", "--tasks same belongs to the evaluation of one checkpoint"),
        ("--tasks sum --round-trips 3", "--round-trips is for --tasks round_trip"),
        ("--against DIR --model DIR --prompts 0", "argument --prompts: got 0, expected at least 1"),
    ],
)
def test_options_that_change_nothing(options, words, tiny_checkpoint, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, *options.replace("DIR", str(tiny_checkpoint)).split(), "--json", tmp_path / "found.json")
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, words",
    [
        ("It's 3, Anna-Lena!", ["it", "s", "3", "anna", "lena"]),
        ("今天15度。", ["今", "天", "15", "度"]),
        ("「ラーメン」々", ["ラ", "ー", "メ", "ン", "々"]),
        ("오늘 Wetter", ["오늘", "wetter"]),
        ("???", []),
    ],
)
def test_words(text, words):
    assert comparison.words(text) == words
    for count in range(1, len(words) + 1):
        assert comparison.words(comparison.beginning(text, count)) == words[:count]


def test_logits_along_an_answer_choose_it(tiny_checkpoint):
    """Two prompts of one length, of which one ends earlier: each token that was written is the likeliest where it stands."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
    processor = Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint)
    one, other = comparison.random_prompts(model.config, processor, 2, 6, seed=3)
    ids = np.concatenate([item.inputs(model)["input_ids"] for item in (one, other)])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    both = comparison.Conversations("both", lambda model: inputs, [None, None])
    free = comparison.write(model, processor, both, inputs, 5)
    model.generation_config.eos_token_id = int(free[0].ids[2])
    answers = comparison.write(model, processor, both, inputs, 5)
    assert len(answers[0].ids) == 3
    for answer, logits in zip(answers, comparison.logits_along(model, both, inputs, answers)):
        assert logits.argmax(axis=1).tolist() == answer.ids.tolist()


def test_divergence_is_what_the_formula_says():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    distances = comparison.Distances()
    distances.add(np.log(np.tile(p, (99, 1))) + 7, np.log(np.tile(p, (99, 1))))
    distances.add(np.log(p)[None], np.log(q)[None])
    found = distances.summary()
    assert found["kl_mean"] == pytest.approx(0.25 * np.log(2) / 100) and found["greedy_agreement"] == 0.99
    with pytest.raises(InputError, match="3 and 2 tokens"):
        distances.add(np.zeros((1, 3)), np.zeros((1, 2)))


@pytest.mark.parametrize("said, heard, count", [("4071", "4071", 0), ("4071", "471", 1), ("12", "2134", 3), ("", "5", 1)])
def test_edit_distance(said, heard, count):
    assert comparison.edit_distance(said, heard) == count


def test_kinds_of_changes():
    rows = [("a", "a", "a"), ("a", "a", "b"), ("a", "b", "a"), ("a", "b", "c"), (None, "x", "y"), (None, "x", "x")]
    found = comparison.changes([dict(zip(("answer", "first", "second"), row)) for row in rows])
    assert found == {
        "count": 6,
        "known": 4,
        "first_right": 2,
        "second_right": 2,
        "same": 2,
        "right_to_wrong": 1,
        "wrong_to_right": 1,
        "different": 2,
    }

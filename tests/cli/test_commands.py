"""The commands inside this process: what they print where, exit codes, and what they refuse."""

import json
import signal
import wave

import pytest

from ms_omni import __version__
from ms_omni.cli import COMMANDS, build_parser
from ms_omni.commands import generate
from ms_omni.engine.speech import SpeechStage

SHORT = ("--max-new-tokens", 3, "--seed", 1)
SPOKEN = (*SHORT, "--talker-max-new-tokens", 4)


def frames(path):
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        return file.readframes(file.getnframes())


def assert_refused(result, said):
    """Exit code 1 and one line."""
    code, out, err = result
    assert code == 1 and not out
    assert err.startswith("ms-omni: error: ") and said in err
    assert len(err.splitlines()) == 1


# -- usage -----------------------------------------------------------------------------------------------------------


def test_version(cli):
    code, out, _ = cli("--version")
    assert code == 0 and out.decode().strip() == f"ms-omni {__version__}"


def test_help_names_every_command_and_each_explains_itself(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for command in COMMANDS:
        assert command.name in out.decode()
        code, text, _ = cli(command.name, "--help")
        assert code == 0 and command.help.split()[0] in text.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("sing",),
        ("generate", "hi"),
        ("generate", "--model", "x"),
        ("tiny",),
        ("convert", "x"),
        ("inspect",),
        ("generate", "--model", "x", "--top-k", "many", "hi"),
        ("tiny", "x", "--dtype", "int8"),
        ("generate", "--model", "x", "--loud", "hi"),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, cli):
    code, out, err = cli(*arguments)
    assert code == 2 and not out and err.startswith("usage: ms-omni")


# -- generate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(tiny_checkpoint, tmp_path_factory):
    """One spoken answer to a picture: the JSON report, the WAV file's samples."""
    import contextlib
    import io

    from ms_omni.cli import main

    target, out = tmp_path_factory.mktemp("spoken") / "out.wav", io.StringIO()
    with contextlib.redirect_stdout(out):
        arguments = ["generate", "--model", tiny_checkpoint, *SPOKEN, "--speech", target, "--json", "hello"]
        assert main([str(argument) for argument in arguments]) == 0
    return json.loads(out.getvalue()), frames(target), target


def test_text_is_printed_and_nothing_else(cli, tiny_checkpoint, spoken):
    code, out, err = cli("generate", "--model", tiny_checkpoint, *SHORT, "hello")
    assert code == 0 and not err
    assert out.decode() == spoken[0]["text"] + "\n"


def test_json_is_one_object(cli, tiny_checkpoint, spoken):
    code, out, err = cli("generate", "--model", tiny_checkpoint, *SHORT, "--json", "hello")
    report = json.loads(out)
    assert code == 0 and not err and len(out.splitlines()) == 1
    assert set(report) == {"text", "prompt_tokens", "text_tokens", "timings_s"}
    assert report["text"] == spoken[0]["text"] and report["text_tokens"] == 3
    assert report["prompt_tokens"] == spoken[0]["prompt_tokens"] > 5
    assert 0 < report["timings_s"]["first_text"] <= report["timings_s"]["total"]
    assert report["timings_s"]["load"] > 0


def test_json_of_a_spoken_answer(spoken):
    report, samples, target = spoken
    assert report["speech"] == {
        "file": str(target),
        "samples": 1920 * 3 - 555,
        "seconds": round((1920 * 3 - 555) / 24_000, 3),
        "frames": 3,
        "real_time_factor": report["speech"]["real_time_factor"],
    }
    assert len(samples) == 2 * report["speech"]["samples"] and any(samples)
    assert report["timings_s"]["first_text"] < report["timings_s"]["first_audio"] <= report["timings_s"]["total"]


def test_raw_speech_goes_to_standard_output_and_text_to_standard_error(cli, tiny_checkpoint, spoken):
    code, out, err = cli("generate", "--model", tiny_checkpoint, *SPOKEN, "--speech", "-", "hello")
    assert code == 0 and out == spoken[1]
    text, report = err.rsplit("\n", 2)[:2]
    assert text == spoken[0]["text"]
    assert "real-time factor" in report and "first sound after" in report


def test_greedy_speech_and_speakers(cli, tiny_checkpoint, spoken, tmp_path):
    waves = []
    for name, seed in (("Aiden", 1), ("Aiden", 2), ("chelsie", 1)):
        target = tmp_path / f"{name}{seed}.wav"
        code, _, err = cli(
            "generate",
            "--model",
            tiny_checkpoint,
            *SPOKEN[:3],
            seed,
            *SPOKEN[4:],
            "--greedy-speech",
            "--speaker",
            name,
            "--speech",
            target,
            "hello",
        )
        assert code == 0 and str(target) in err
        waves.append(frames(target))
    assert waves[0] == waves[1] != waves[2]
    assert spoken[1] not in waves


@pytest.mark.parametrize(
    "change, said",
    [
        (("--temperature", -1), "temperature is -1.0, expected a number of at least 0"),
        (("--repetition-penalty", 0), "repetition_penalty is 0.0"),
        (("--stop", ""), "stop_strings is"),
        (("--max-new-tokens", 0), "max_new_tokens is 0"),
        (("--top-p", 3), "top_p is 3.0"),
        (("--seed", -1), "seed is -1"),
        (("--speech", "/no/such/folder/x.wav"), "cannot write speech to /no/such/folder/x.wav"),
        (("--speech", "x.wav", "--speaker", "Nobody"), "unknown speaker 'Nobody'; this checkpoint has aiden"),
        (("--dtype", "float8"), "float8"),
        (("--image", "/no/such.jpg"), "/no/such.jpg"),
        (("--model", "/no/such/model"), "/no/such/model"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_one_line_says_what_is_wrong(change, said, cli, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("generate", "--model", tiny_checkpoint, *change, "hello"), said)
    assert not (tmp_path / "x.wav").exists()


def test_sampling_options():
    def options(*given):
        return generate.text_options(build_parser().parse_args(["generate", "--model", "x", *given, "hi"]))

    assert options() == {}
    assert options("--max-new-tokens", "5") == {"max_new_tokens": 5}
    assert options("--top-k", "3", "--top-p", "0.5") == {"top_k": 3, "top_p": 0.5, "do_sample": True}
    assert options("--temperature", "0.7") == {"temperature": 0.7, "do_sample": True}
    penalties = ("--repetition-penalty", "1.1", "--presence-penalty", "1", "--no-repeat-ngram-size", "3")
    assert options(*penalties) == {"repetition_penalty": 1.1, "presence_penalty": 1.0, "no_repeat_ngram_size": 3}
    assert options("--min-p", "0.1") == {"min_p": 0.1, "do_sample": True}


def test_temperature_zero_is_greedy_and_a_stop_text_ends_the_answer(cli, tiny_checkpoint):
    command = ("generate", "--model", tiny_checkpoint, "--max-new-tokens", 4)
    code, greedy, _ = cli(*command, "hello")
    assert code == 0 and len(greedy) > 3
    assert cli(*command, "--temperature", 0, "hello")[:2] == (0, greedy)
    code, stopped, _ = cli(*command, "--stop", greedy.decode()[:2], "hello")
    assert code == 0 and greedy.startswith(stopped.rstrip()) and len(stopped) <= len(greedy)
    assert cli(*command, "--no-repeat-ngram-size", 1, "--temperature", 2, "--seed", 1, "hello")[1] != greedy


@pytest.mark.parametrize("order", [("low", "red", "high", "blue"), ("blue", "red", "high", "low")])
def test_media_keep_their_order(order, tiny_checkpoint, media):
    from ms_omni import Qwen3OmniMoeProcessor

    processor = Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint)
    given = [part for name in order for part in ("--image" if name in ("red", "blue") else "--audio", str(media[name]))]
    arguments = build_parser().parse_args(["generate", "--model", "x", *given, "--system", "be kind", "what?"])
    inputs = generate.read_inputs(processor, arguments)
    text = processor.decode(inputs["input_ids"][0])
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n<|")
    assert text.endswith("what?<|im_end|>\n<|im_start|>assistant\n")
    starts = {
        "<|vision_start|>": [name for name in order if name in ("red", "blue")],
        "<|audio_start|>": [name for name in order if name in ("low", "high")],
    }
    found = sorted(
        (at, names[nth])
        for mark, names in starts.items()
        for nth, at in enumerate(at for at in range(len(text)) if text.startswith(mark, at))
    )
    assert tuple(name for _, name in found) == order
    sizes = {"red": [1, 4, 4], "blue": [1, 4, 6]}
    assert inputs["image_grid_thw"].tolist() == [sizes[name] for name in order if name in sizes]
    lengths = inputs["feature_attention_mask"].sum(-1).tolist()
    assert (lengths[0] < lengths[1]) == (order.index("low") < order.index("high"))
    assert inputs["use_audio_in_video"] is False


def test_an_answer_about_media(cli, tiny_checkpoint, media):
    code, out, _ = cli(
        "generate", "--model", tiny_checkpoint, *SHORT, "--image", media["red"], "--audio", media["low"], "--json", "what?"
    )
    assert code == 0 and json.loads(out)["text_tokens"] == 3


def test_interrupting_keeps_what_was_said(cli, tiny_checkpoint, tmp_path, monkeypatch):
    frames_made, made = SpeechStage.frames, []

    def interrupted(self, *arguments):
        made.append(arguments)
        if len(made) == 6:
            signal.raise_signal(signal.SIGINT)
        frames_made(self, *arguments)

    monkeypatch.setattr(SpeechStage, "frames", interrupted)
    target = tmp_path / "said.wav"
    options = ("--max-new-tokens", 8, "--speech", target, "--seed", 5)
    code, _, err = cli("generate", "--model", tiny_checkpoint, *options, "hi")
    assert code == 130 and err.strip().splitlines()[-1] == "ms-omni: interrupted"
    assert len(frames(target)) == 2 * (4 * 1920 - 555)  # the chunk of four frames that was out


# -- say, tiny, inspect, convert -------------------------------------------------------------------------------------


def test_say(cli, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--model", tiny_checkpoint, "--talker-max-new-tokens", 4, "--seed", 3)
    code, out, err = cli("say", *options, "hello world")
    assert code == 0 and out.decode() == "hello world\n" and "speech.wav" in err
    first = frames(tmp_path / "speech.wav")
    assert len(first) == 2 * (3 * 1920 - 555)
    assert cli("say", *options, "--speech", "-", "hello world") == (0, first, _anything())
    assert cli("say", *options, "--speech", "-", "red green blue")[1] != first


class _anything:
    def __eq__(self, other):
        return True


def test_saying_nothing(cli, tiny_checkpoint, tmp_path):
    assert_refused(cli("say", "--model", tiny_checkpoint, "--speech", tmp_path / "x.wav", ""), "nothing to say")
    assert not (tmp_path / "x.wav").exists()


def test_tiny_inspect_convert_and_back(cli, tmp_path):
    tiny, ours, back = (tmp_path / name for name in ("tiny", "ours", "back"))
    code, out, _ = cli("tiny", tiny, "--seed", 3)
    assert code == 0 and str(tiny) in out.decode()
    assert_refused(cli("tiny", tiny), str(tiny))
    code, table, _ = cli("inspect", tiny)
    assert code == 0 and "code2wav" in table.decode() and "0 unmatched names" in table.decode()
    for source, target, form in ((tiny, ours, "ms_omni"), (ours, back, "published")):
        code, out, _ = cli("convert", source, target)
        assert code == 0 and f"in {form} form to {target}" in out.decode()
    assert cli("inspect", back)[1].split(b"\n", 1)[1] == table.split(b"\n", 1)[1]
    reports = [json.loads(cli("generate", "--model", folder, *SHORT, "--json", "hi")[1]) for folder in (tiny, ours, back)]
    assert reports[0]["text"] == reports[1]["text"] == reports[2]["text"]


def test_tiny_options(cli, tmp_path):
    code, _, _ = cli("tiny", tmp_path / "quiet", "--no-talker", "--dtype", "float32")
    table = cli("inspect", tmp_path / "quiet")[1].decode()
    assert code == 0 and "F32" in table and "code2wav" not in table
    said = "has no talker"
    assert_refused(cli("generate", "--model", tmp_path / "quiet", "--speech", tmp_path / "x.wav", "hi"), said)
    assert_refused(cli("say", "--model", tmp_path / "quiet", "--speech", tmp_path / "x.wav", "hi"), said)
    assert_refused(cli("tiny", tmp_path / "other", "--geometry", "huge"), "huge")


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_folder_that_is_none(command, cli, tmp_path):
    out = (tmp_path / "out",) if command == "convert" else ()
    assert_refused(cli(command, tmp_path / "nothing", *out), str(tmp_path / "nothing"))

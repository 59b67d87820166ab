"""What is wrong with the command is said before MindSpore is imported, which alone takes seconds."""

import pytest

from ms_omni import cli


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "--model", "nowhere", "hi"], "nowhere"),
        (["generate", "--image", "no/such.jpg", "hi"], "image no/such.jpg does not exist"),
        (["generate", "--audio", "file:///no/such.wav", "hi"], "audio /no/such.wav does not exist"),
        (["generate", "--video", ".", "hi"], "video . is a folder"),
        (["generate", "--speech", "x.wav", "--speaker", "Bob", "hi"], "unknown speaker 'Bob'; this checkpoint has aiden"),
        (["generate", "--speech", "x.aac", "hi"], "the ending is '.aac', expected .wav, .flac, .mp3, .ogg, .opus"),
        (["generate", "--speech", "no/x.wav", "hi"], "a file in a folder that exists"),
        (["generate", "--max-new-tokens", "0", "hi"], "max_new_tokens is 0"),
        (["say", "--model", "nowhere", "hi"], "nowhere"),
        (["say", "--speaker", "Bob", "--speech", "x.wav", "hi"], "unknown speaker 'Bob'"),
        (["say", " "], "nothing to say"),
        (["plan", "--config", "instrct", "--cards", "2"], "no configuration named 'instrct'"),
    ],
)
def test_mistakes_are_told_first(arguments, message, tiny_checkpoint, python, broken_mindspore, tmp_path):
    command, *rest = arguments
    folder = tmp_path / "empty"
    folder.mkdir()
    model = [] if "--model" in rest or command == "plan" else ["--model", tiny_checkpoint]
    run = python("-m", "ms_omni", command, *model, *rest, ahead_on_path=broken_mindspore, cwd=folder)
    assert run.returncode == 1 and not run.stdout
    (line,) = run.stderr.splitlines()
    assert line.startswith("ms-omni: error: ") and message in line and "MindSpore" not in line
    assert not list(folder.iterdir())


def test_a_model_that_cannot_speak_is_not_asked_to(tmp_path, tiny_checkpoint, capsys):
    import json
    import shutil

    shutil.copytree(tiny_checkpoint, tmp_path / "silent")
    config = json.loads((tmp_path / "silent/config.json").read_text())
    (tmp_path / "silent/config.json").write_text(json.dumps({**config, "enable_audio_output": False}))
    assert cli.main(["say", "--model", str(tmp_path / "silent"), "--speech", str(tmp_path / "x.wav"), "hi"]) == 1
    assert "has no talker" in capsys.readouterr().err and not (tmp_path / "x.wav").exists()


def test_plan_needs_no_mindspore(python, broken_mindspore):
    for strategy in ("ep", "zero3"):
        command = ["plan", "--config", "instruct", "--cards", "1,2", "--strategy", strategy]
        run = python("-m", "ms_omni", *command, ahead_on_path=broken_mindspore)
        assert run.returncode == 0 and "| 2 |" in run.stdout

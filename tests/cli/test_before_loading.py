"""What is wrong with the options is said before the weights are read."""

import pytest

from ms_omni import cli


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "--speech", "x.wav", "--speaker", "Bob", "hi"], "unknown speaker 'Bob'; this checkpoint has aiden"),
        (["generate", "--temperature", "0", "hi"], "temperature is 0"),
        (["generate", "--max-new-tokens", "0", "hi"], "max_new_tokens is 0"),
        (["say", "--speaker", "Bob", "--speech", "x.wav", "hi"], "unknown speaker 'Bob'"),
    ],
)
def test_options_are_checked_first(arguments, message, tiny_checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ms_omni.pretrained.load_checkpoint", None)
    assert cli.main([arguments[0], "--model", str(tiny_checkpoint), *arguments[1:]]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""`ms-omni doctor` as a whole, on the machine that runs the tests."""

import pytest

from ms_omni.cli import main


@pytest.mark.slow
def test_this_machine(capsys):
    """Everything at once, as a user runs it first."""
    code = main(["doctor"])
    text, err = capsys.readouterr()
    assert code == 0, text
    assert text.splitlines()[-1] == "This machine can run the model."
    for title in (
        "Python",
        "packages",
        "memory",
        "disk",
        "devices",
        "MindSpore",
        "operators",
        "speed",
        "msrun, links",
        "self-check",
        "the miniature",
    ):
        assert any(line.startswith(title) for line in text.splitlines())
    assert "XX" not in text and "Traceback" not in text + err

"""Conversations with the miniature in the same process."""

import soundfile

from tests.serve.conftest import MINIATURE

SAMPLES = MINIATURE / "samples"


def test_a_conversation_by_a_pipe(piped, tmp_path):
    commands = [f"/image {SAMPLES / 'circle.png'}", "What is it?", "/speak a.wav", f"/audio {SAMPLES / 'digits.wav'}"]
    run = piped(*commands, "What do you hear?", "/speak off", "/retry", "/save c.json", at=("--model", MINIATURE))
    assert run.returncode == 0, run.stderr
    colour, spoken, written = run.stdout.splitlines()
    assert colour and spoken == written and spoken.isdigit()
    assert soundfile.info(tmp_path / "a.wav").duration > 0.3


def test_a_conversation_at_a_terminal(typed):
    chat = typed("--model", MINIATURE)
    chat.wait("/help says")
    chat.wait("> ")
    chat.say("/set min_p 0.0")
    chat.wait("> ")
    chat.say(f"/speak {MINIATURE.parent / 'nowhere' / 'a.wav'}")
    chat.wait("must be a file in a folder that exists")
    chat.wait("> ")
    chat.say(f"/audio {SAMPLES / 'digits.wav'}")
    chat.wait("> ")
    chat.say("What do you hear?")
    chat.wait(r"\r\n\d+\r\n")
    chat.say("/quit")
    assert chat.ended() == 0

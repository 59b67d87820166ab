"""Conversations with a server that answers by a rule: commands, history, interruptions, speech."""

import json
import os
import signal
import time

import pytest
import soundfile

from ms_omni.commands.chat_session import Session
from ms_omni.errors import InputError


def test_a_pipe_of_questions_gives_answers_alone(rule, piped):
    run = piped("hello", "", "two", at=("--url", rule.url, "--system", "Be brief."))
    assert (run.returncode, run.stdout) == (0, "2 hello\n4 two\n"), run.stderr
    assert run.stderr == ""
    assert [message["role"] for message in rule.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert rule.bodies[1]["messages"][2]["content"] == "2 hello" and rule.bodies[0]["model"] == "a-model"


def test_an_error_does_not_end_it_but_is_told(rule, piped):
    run = piped("badly", "hello", "/nothing", at=("--url", rule.url))
    assert (run.returncode, run.stdout) == (1, "\n1 hello\n")
    assert "error: 400: that is bad" in run.stderr and "there is no /nothing; /help names" in run.stderr
    assert "Traceback" not in run.stderr


def test_lines_that_go_on(rule, piped):
    piped("one \\", "two", '"""a', "b", 'c"""', '"""d"""', at=("--url", rule.url))
    asked = [body["messages"][-1]["content"] for body in rule.bodies]
    assert asked == ["one \ntwo", "a\nb\nc", "d"]


def test_settings_media_and_what_is_kept(rule, piped, tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "a.wav").write_bytes(b"sound")
    commands = ["/set temperature 0.5", "/set top_k 3", "/image a.png", "/audio a.wav", "/video http://a/b.mp4"]
    run = piped(
        *commands, "what", "/save c.json", "/clear", "x", "/load c.json", "/set top_k off", "more", at=("--url", rule.url)
    )
    assert run.returncode == 0, run.stderr
    first, second, third = rule.bodies
    parts = first["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "input_audio", "video_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,") and parts[1]["input_audio"]["format"] == "wav"
    assert (first["temperature"], first["top_k"]) == (0.5, 3) and "top_k" not in third
    assert len(second["messages"]) == 1 and len(third["messages"]) == 3
    assert json.loads((tmp_path / "c.json").read_text()) == third["messages"][:2]


def test_speech_goes_to_files_of_their_own(rule, piped, tmp_path):
    run = piped("/voice chelsie", "/speak a.wav", "one", "two", "/speak off", "three", at=("--url", rule.url))
    assert run.returncode == 0 and run.stdout == "1 one\n3 two\n5 three\n", run.stderr
    for name in ("a.wav", "a-2.wav"):
        assert soundfile.info(tmp_path / name).duration == pytest.approx(0.1)
        assert f"0.10 s of speech -> {name}" in run.stderr
    assert rule.bodies[0]["audio"] == {"voice": "Chelsie", "format": "pcm16"} and "audio" not in rule.bodies[2]


def test_speech_is_played_by_what_is_there(rule, piped, environment, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "aplay").write_text(f"#!/bin/sh\n/bin/cat > {tmp_path}/played\n")
    (tools / "aplay").chmod(0o755)
    environment["PATH"] = str(tools)
    run = piped("/speak on", "one", at=("--url", rule.url))
    assert run.returncode == 0 and "answers are played by aplay" in run.stderr
    assert (tmp_path / "played").stat().st_size == 4800
    (tools / "aplay").write_text("#!/bin/sh\nexit 3\n")
    run = piped("/speak on", "one", at=("--url", rule.url))
    assert "aplay cannot play here (it ended with 3); '/speak FILE.wav' writes files" in run.stderr
    assert run.stdout == "1 one\n" and "Traceback" not in run.stderr
    (tools / "aplay").unlink()
    run = piped("/speak on", "one", at=("--url", rule.url))
    assert "nothing here plays sound (looked for aplay, paplay" in run.stderr and "audio" not in rule.bodies[-1]


def test_a_terminal(rule, typed, tmp_path):
    """History of lines, an answer that is stopped and kept, asked again, thoughts, and an empty prompt that is left."""
    chat = typed("--url", rule.url)
    chat.wait("/help says")
    chat.wait("> ")
    chat.say("hello")
    chat.wait("1 hello")
    chat.wait("> ")
    chat.say("slowly")
    chat.wait(r"3 slowly\.\.")
    chat.interrupt(chat.wait, "> ")
    assert rule.left.wait(5)
    chat.say("and")
    chat.wait("5 and")
    chat.wait("> ")
    assert rule.bodies[2]["messages"][3]["content"].startswith("3 slowly.")
    chat.say("/retry")
    chat.wait("5 and")
    chat.wait("> ")
    chat.say("think")
    chat.wait("hmm")
    chat.wait("7 think")
    chat.wait("> ")
    chat.say("half a quest", end="")
    chat.wait("half a quest")
    chat.interrupt(chat.wait, "> ")
    assert chat.process.poll() is None
    assert chat.interrupt(chat.ended) == 0
    kept = (tmp_path / "cache/ms_omni/chat_history").read_text()
    assert "hello" in kept and "/retry" in kept


def test_a_pipe_that_is_interrupted_ends(rule, environment, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "ms_omni", "chat", "--url", rule.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes)
    process.stdin.write("slowly\nhello\n")
    process.stdin.flush()
    ends = time.monotonic() + 30
    while not rule.bodies and time.monotonic() < ends:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "ms-omni: interrupted" in said and "Traceback" not in said
    assert len(rule.bodies) == 1


WRONG = {
    "no file": (lambda session, folder: session.show("image", "/no/such"), "cannot read /no/such"),
    "a folder": (lambda session, folder: session.show("image", f"{folder}"), "cannot read"),
    "nothing in it": (lambda session, folder: session.show("image", f"{folder}/empty"), "is empty"),
    "a setting": (
        lambda session, folder: session.set("temprature", "1"),
        "there is no setting 'temprature'; there are temp",
    ),
    "a value": (lambda session, folder: session.set("top_k", "1.5"), "top_k takes a whole number, or 'off'"),
    "again": (lambda session, folder: session.again(), "nothing was asked yet"),
    "no JSON": (lambda session, folder: session.load(f"{folder}/text"), "is not JSON"),
    "no messages": (lambda session, folder: session.load(f"{folder}/object"), "expected a list of"),
    "nowhere": (lambda session, folder: session.save("/no/such/file"), "cannot write /no/such/file"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said(what, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "object").write_text('[{"role": "tool"}]')
    do, message = WRONG[what]
    session = Session(None, "http://inside/v1", "a-model")
    with pytest.raises(InputError, match=message):
        do(session, tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--model DIR says what to talk with, or --url URL"),
        (["--url", "127.0.0.1"], "expected http://"),
        (["--url", "http://127.0.0.1:9"], "nobody answers at http://127.0.0.1:9/v1"),
        (["--url", "http://a", "--dtype", "float32"], "--dtype is about a model that is loaded here"),
        (["--model", "/no/such"], "/no/such"),
        (["--model", "x", "--api-key", "k"], "--api-key is for --url"),
    ],
)
def test_arguments(arguments, said, capsys):
    from ms_omni.cli import main

    assert main(["chat", *arguments]) == 1
    assert said in capsys.readouterr().err

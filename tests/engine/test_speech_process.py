"""`speech="process"`: the same answers, text that waits for nothing, and no trace of a process that has ended, whichever it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore
import numpy as np
import pytest

from ms_omni.engine import speech_process
from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError, ProcessError
from ms_omni.outputs import AudioChunk, StreamEnd, TextDelta
from tests.engine.callers import MINIATURE, SHORT, Callers, answer, check_empty
from tests.engine.test_engine import alone, ask, model, requests  # noqa: F401
from tests.engine.test_ring import SHARED, left_behind

ROOT = Path(__file__).resolve().parents[2]
END_S = 20


@pytest.fixture(scope="module")
def writer():
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    options = {"compile_steps": False, "progress": False, "enable_audio_output": False}
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(MINIATURE, **options)


@pytest.fixture(scope="module")
def engine(writer):
    engine = Engine(writer, speech="process")
    yield engine
    close(engine)


def close(engine):
    """Its process comes to an orderly end."""
    process = engine.speech.process
    engine.close()
    assert process.returncode == 0


def has_ended(process):
    """Whether the process of this number ends soon."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("seed", range(2))
def test_same_answers(engine, world, seed):
    """Ids, codes and samples of text and speech, greedy and sampled, some cancelled."""
    draw, callers = np.random.default_rng([14, seed]), Callers(world, engine)
    wanted = draw.integers(0, SHORT, 10).tolist()
    while wanted or callers.calls:
        if wanted and draw.random() < 0.1:
            callers.call(wanted.pop())
        callers.step()
        if callers.calls and draw.random() < 0.01:
            callers.cancel(int(draw.choice(sorted(callers.calls))))
    assert not callers.faults
    check_empty(engine)
    assert not engine.speech.remote


def test_codes(engine, model, requests):
    kind = next(kind for kind, request in enumerate(requests) if request.get("talker_do_sample"))
    found = []
    for each in (engine, Engine(model)):
        id = each.add(**requests[kind])
        row = each.rows[id]
        list(each.events(id))
        found.append(np.concatenate(row.codes, axis=1))
    assert found[0].size and np.array_equal(*found)


def test_rings_that_hold_next_to_nothing(writer, requests, alone, monkeypatch):
    """Nothing is lost or stuck, also while the engine does not listen."""
    monkeypatch.setattr(speech_process, "RING_BYTES", 2000)
    engine = Engine(writer, speech="process")
    kinds = [kind for kind, request in enumerate(requests) if "return_audio" not in request][:3]
    ids = {engine.add(**requests[kind]): kind for kind in kinds}
    found = {id: [] for id in ids}
    for turn in range(100_000):
        for id, event in engine.step():
            found[id].append(event)
        if turn == 12:
            time.sleep(1)
        if not engine.added:
            break
    for id, kind in ids.items():
        assert answer(found[id]) == alone[kind]
    close(engine)


def test_a_model_without_a_folder(requests, alone, model, monkeypatch, tmp_path):
    """What the model holds is what speaks; it is saved for a while."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(model, "folder", None)
    engine = Engine(model, speech="process")
    assert not list(tmp_path.iterdir())
    kind = next(kind for kind, request in enumerate(requests) if "return_audio" not in request)
    assert answer(list(engine.events(engine.add(**requests[kind])))) == alone[kind]
    close(engine)


@pytest.mark.parametrize("source", ["folder", "changed"])
def test_a_talker_of_codes_speaks_as_it_is_in_memory(source, requests, monkeypatch):
    """Also one that was changed since, or has no folder; and one that the process rounds itself."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    options = {"compile_steps": False, "progress": False, "quantize": "int8"}
    whole = Qwen3OmniMoeForConditionalGeneration.from_pretrained(MINIATURE, **options)
    kind = next(kind for kind, request in enumerate(requests) if "return_audio" not in request)
    speaking = whole
    if source == "folder":
        speaking = Qwen3OmniMoeForConditionalGeneration.from_pretrained(MINIATURE, **options, enable_audio_output=False)
    else:
        scale = whole.talker.get_parameter("model.layers.0.self_attn.o_proj.weight_scale")
        scale.set_data((scale.astype(mindspore.float32) * 2).astype(scale.dtype))  # MindSpore 2.7 does not multiply bfloat16
        monkeypatch.setattr(whole, "folder", None)
    found = []
    for engine in (Engine(whole), Engine(speaking, speech="process")):
        found.append(answer(list(engine.events(engine.add(**requests[kind])))))
        engine.close()
    assert found[0] == found[1]


def test_when_speech_is_killed_text_goes_on(writer, ask, alone, requests):
    engine = Engine(writer, speech="process")
    question = ask("Say 374 and then say 12.")
    id = engine.add(**question, max_new_tokens=60, eos_token_id=[], talker_eos_token_id=[], talker_max_new_tokens=400)
    events, stream = [], engine.events(id)
    with pytest.raises(ProcessError, match="SIGKILL"):
        for event in stream:
            events.append(event)
            if len(events) == 10:
                engine.speech.process.kill()
    assert sum(isinstance(event, TextDelta) for event in events) == 60
    text = next(kind for kind, request in enumerate(requests) if "return_audio" in request)
    assert answer(list(engine.events(engine.add(**requests[text])))) == alone[text]
    with pytest.raises(ProcessError, match="new engine"):
        engine.add(**question)
    check_empty(engine)
    engine.close()


def test_text_does_not_wait(engine, ask):
    """A text is complete while the process that speaks is stopped; the sound comes when it goes on."""
    process = engine.speech.process.pid
    os.kill(process, signal.SIGINT)  # which is for the engine alone
    os.kill(process, signal.SIGSTOP)
    try:
        id = engine.add(**ask("What is 1 plus 2?"), max_new_tokens=30, eos_token_id=[], talker_max_new_tokens=5, seed=0)
        events = []
        while len(events) < 30:
            events += [event for _, event in engine.step()]
        engine.step()
        assert all(isinstance(event, TextDelta) for event in events) and id in engine.added
    finally:
        os.kill(process, signal.SIGCONT)
    while engine.added:
        events += [event for _, event in engine.step()]
    assert isinstance(events[-1], StreamEnd) and isinstance(events[-2], AudioChunk)


def test_what_cannot_be_spoken_is_refused(engine, requests, writer, model):
    speaking = next(request for request in requests if "return_audio" not in request)
    with pytest.raises(InputError, match="its speech needs"):
        engine.add(**{**speaking, "talker_max_new_tokens": 10**6})
    for wrong in ({"model": writer.thinker, "speech": "process"}, {"model": model, "speech": "elsewhere"}):
        with pytest.raises(InputError, match="expected None, or 'process'"):
            Engine(**wrong)
    check_empty(engine)


def test_a_process_that_cannot_load_says_why(writer, monkeypatch):
    config = speech_process.remote_talker_config(writer, "process")
    monkeypatch.setattr(writer, "folder", ROOT / "docs")
    with pytest.raises(ProcessError, match="CheckpointError: .* holds no weights"):
        speech_process.SpeechProcess(writer, config, np.zeros((3, 192)), blocks=2, max_rows=1)


CALLER = f"""
from ms_omni import Qwen3OmniMoeForConditionalGeneration as Model, Qwen3OmniMoeProcessor as Processor
from ms_omni.engine.engine import Engine

folder = {str(MINIATURE)!r}
engine = Engine(Model.from_pretrained(folder, progress=False, enable_audio_output=False), speech="process")
chat = [{{"role": "user", "content": [{{"type": "text", "text": "What is 1 plus 2?"}}]}}]
asked = Processor.from_pretrained(folder).apply_chat_template(
    [chat], tokenize=True, return_dict=True, add_generation_prompt=True
)
id = engine.add(**asked, talker_eos_token_id=[], talker_max_new_tokens=4000)
for number, event in enumerate(engine.events(id)):
    if number == 3:
        print(engine.speech.process.pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_the_engine_ends_so_does_speech(number):
    """Also in the middle of a long answer, and without a word."""
    before = os.listdir(SHARED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", CALLER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background has it ignored
    ) as caller:
        child = int(caller.stdout.readline())
        os.killpg(caller.pid, number)  # as a terminal does
    assert has_ended(child)
    assert not left_behind(before)

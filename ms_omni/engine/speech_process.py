"""Speech in a process of its own, seen from the engine's: the methods of `SpeechStage`, which send and receive messages.

    engine's process   settings, tts_embeds                            loads talker and vocoder, on a card of its own   speech's process
                       context (once), text, cancel             --->   its own scheduler and pool (`speech_worker.py`)
                       sounds, ended, failed                    <---

Neither waits for the other: texts go on whatever the speech does. A speech's process ends with the engine's. On CPU each has half of
the processors.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Container
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..checkpoint.save import save_as_stored
from ..errors import InputError, ProcessError
from ..generation.request import SpeechParams
from ..generation.talker_prompt import TalkerContext
from ..modeling.layer import is_coded
from ..modeling.ops import build
from ..modeling.packing import host_array
from .blocks import BlockPool
from .plan import Plan, Speech
from .ring import MIB, Channel
from .speech import SpeechOutput

RING_BYTES = 4 * MIB
END_S = 5.0
"""Until a process that was asked to end is killed."""
ROOT = Path(__file__).resolve().parents[2]
# A file of the working directory must not be imported in the place of a module of Python's.
BEGIN = (
    f"import sys; sys.path = [{str(ROOT)!r}, *filter(None, sys.path)]; from ms_omni.engine.speech_main import main; main()"
)
RANK_VARIABLES = ("MS_ROLE", "MS_SCHED", "MS_WORKER", "MS_NODE", "RANK_")
"""Beginnings of the variables that make a process a rank of a job."""


class SpeechProcess:
    """model: the whole one, config: with its talker; tts_embeds: see `SpeechStage`; blocks: of the pool, whose keys and values have
    kv_cache_dtype; device: number of the card, among those that this process may see.

    What speaks is the talker that the model holds (its weights are saved once as they are, codes as codes, into a temporary folder)
    or, where it was loaded with enable_audio_output=False, that of the model's folder, which so is in memory once. Raises
    `InputError`, `ProcessError`.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        tts_embeds: np.ndarray,
        blocks: int,
        max_rows: int,
        device: int | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        if device is None and model.device != "CPU":
            raise InputError(
                f"speech='process' on {model.device} needs a card of its own; give its number as speech_device, counted among "
                "those that this process may see"
            )
        if model.process_group is not None:
            raise InputError(
                "speech='process' is for a model in one process; this one is shared by several ranks, which speak together"
            )
        self.remote: set[int] = set()
        self.lost = ""  # why there is no more sound
        self._pool = BlockPool(blocks)
        self._pending: dict[int, tuple[SpeechParams, int]] = {}  # until their context is there
        self._channel, descriptors = Channel.pair(RING_BYTES)
        processors = build.available_threads()
        self.process = _start(descriptors, max(processors // 2, 1))
        build.limit_threads(max(processors - processors // 2, 1))
        self.close = weakref.finalize(self, _end, self.process, self._channel)
        # A CPU computes in one dtype, whatever it stores; asked for by name, nothing would be stored in another.
        dtype = model.request.dtype if model.device == "CPU" and model.request is not None else str(model.dtype)
        settings = {"target": model.device, "device": device, "dtype": dtype}
        settings |= {"blocks": blocks, "kv_cache_dtype": kv_cache_dtype}
        settings |= {"max_rows": max_rows, "compile_after": model.compile_after}
        try:
            with _weights(model, config) as parts:
                self._channel.send(settings | {"parts": parts}, tts_embeds=tts_embeds)
                while not any(header["kind"] == "ready" for header, _ in self._pump()):
                    if self.lost:
                        raise ProcessError(self.lost)
                    self.wait(None)
        except BaseException:
            self.close()
            raise

    # -- what a stage does -----------------------------------------------------------------------------------------------

    def job(self, speech: Speech) -> None:
        """What the engine's scheduler has to plan of a speech: nothing. Raises `InputError` for what does not fit."""
        if self.lost:
            raise ProcessError(self.lost)
        self._pool.fitting(speech.prompt, speech.limit, speech.named, "its speech")

    def begin(self, id: int, params: SpeechParams, row: int, max_codes: int | None = None) -> None:
        """See `SpeechStage`; the process that speaks knows itself how much room there is."""
        self.remote.add(id)
        self._pending[id] = params, row

    def set_prompt(self, id: int, context: TalkerContext) -> None:
        """See `SpeechStage`."""
        if id not in self.remote:
            return
        params, row = self._pending.pop(id)
        text, media = (
            None if states is None else host_array(states).astype(np.float32) for states in (context.text, context.media)
        )
        arrays = {"text": text, "media": media, "is_media": context.is_media, "positions": context.positions}
        header = {"kind": "context", "id": id, "row": row, "params": asdict(params), "following": float(context.following)}
        self._channel.send(header, **arrays)

    def append_text(self, id: int, embeds: np.ndarray, ended: bool) -> None:
        """See `SpeechStage`."""
        if id in self.remote:
            self._channel.send({"kind": "text", "id": id, "ended": ended}, embeds=embeds)

    def cancel(self, id: int) -> None:
        """See `SpeechStage`."""
        if id in self.remote:
            self.remote.remove(id)
            if self._pending.pop(id, None) is None:
                self._channel.send({"kind": "cancel", "id": id})

    def apply_blocks(self, plan: Plan) -> None:
        """Nothing: plans do not count this speech."""

    def execute(self, plan: Plan, failed: Container[int] = ()) -> SpeechOutput:
        """What has come since the last call."""
        output = SpeechOutput()
        for header, arrays in self._pump():
            kind, id = header["kind"], header.get("id")
            if id not in self.remote:
                continue
            if kind == "sound":
                output.sounds.append((id, arrays["pcm"], arrays["codes"]))
                continue
            self.remote.remove(id)
            output.ended.add(id)
            if kind == "failed":
                output.failed[id] = InputError(header["why"])
        if self.lost:
            output.failed |= {id: ProcessError(self.lost) for id in self.remote}
            output.ended |= self.remote
            self.remote.clear()
            self._pending.clear()
        return output

    def wait(self, seconds: float | None) -> None:
        """Until something may have come; for any thread."""
        self._channel.wait(seconds)

    def _pump(self):
        found = [] if self.lost else self._channel.pump()
        why = [header["why"] for header, _ in found if header["kind"] == "lost"]
        if not self.lost and (why or self._channel.closed):
            self.lost = (
                f"the process that speaks {why[0] if why else self._ended()}, and with it the sound; texts go on. Ask with "
                "return_audio=False, or make a new engine to speak again"
            )
            build.limit_threads(None)
        return found

    def _ended(self):
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "does not listen any more"
        if code == -signal.SIGKILL:
            return "was ended by SIGKILL (without anybody's doing that means: there was no memory left)"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"


def _start(descriptors, processors):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(RANK_VARIABLES)}
    environment["OMP_NUM_THREADS"] = str(processors)
    arguments = [str(number) for number in (*descriptors, os.getpid())]
    try:
        return subprocess.Popen(
            [sys.executable, "-c", BEGIN, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a program prints is its own
            env=environment,
            start_new_session=True,  # an interruption from the terminal is for the engine, which decides what becomes of the speech
            pass_fds=descriptors,
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _end(process, channel):
    build.limit_threads(None)
    channel.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _weights(model, config):
    """Where talker and vocoder are loaded from: `{part: arguments}`; what has to be saved for that is removed behind it."""
    parts = {name: {"config": getattr(config, f"{name}_config").to_dict()} for name in ("talker", "code2wav")}
    names = ("variant", "key_mapping", "quantize", "quantize_group", "quantize_embeddings")
    if not model.has_talker:
        same = {name: getattr(model.request, name) for name in names}
        yield {name: {**part, **same, "folder": str(model.folder)} for name, part in parts.items()}
        return
    with tempfile.TemporaryDirectory(prefix="ms_omni-speech-") as folder:
        for name, part in parts.items():
            part["folder"], cell = str(Path(folder) / name), getattr(model, name)
            if is_coded(cell):
                save_as_stored(cell, part["folder"], cell.config)
            else:
                cell.save_pretrained(part["folder"])
        yield parts


def remote_talker_config(model: Any, speech: str | None) -> Any:
    """None, or for speech="process" the configuration of a model with its talker, here or in its folder. Raises `InputError`."""
    if speech is None:
        return None
    config = _with_talker(model) if speech == "process" and hasattr(model, "thinker") else None
    if config is None:
        raise InputError(f"speech is {speech!r}, expected None, or 'process' for a model that has a talker in its folder")
    return config


def _with_talker(model):
    if model.has_talker:
        return model.config
    if model.folder is None or model.request.state_dict is not None:
        return None
    changes = {name: value for name, value in model.request.changes.items() if name != "enable_audio_output"}
    config = type(model)._configuration(model.folder, replace(model.request, changes=changes))
    return config if config.enable_audio_output else None


def with_talker(model: Any, config: Any) -> Any:
    """The model as its callers see it; config: of one whose talker is in another process, or None."""
    if config is None:
        return model
    parts = {"thinker": model.thinker, "generation_config": model.generation_config}
    return SimpleNamespace(config=config, has_talker=True, **parts)

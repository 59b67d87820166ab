"""From a conversation to arrays in few files, each entered as seldom as can be, so that one can follow what is read."""

import os
import sys
from pathlib import Path

from PIL import Image

import ms_omni.input
from ms_omni.input.load import Source
from ms_omni.input.messages import Item, Message
from tests.input.make_files import tone, write_sound, write_video

ROOT = os.path.dirname(ms_omni.input.__file__)


def carries(value, names, files):
    """Whether a value is, or holds, a conversation, an item, the path or address of a medium; with `files`, its open file."""
    if isinstance(value, (Message, Item, Source)) or (files and hasattr(value, "read")):
        return True
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value) in names
    if isinstance(value, dict):
        return "role" in value or value.get("type") in ("text", "image", "audio", "video")
    return isinstance(value, (list, tuple)) and any(carries(one, names, files) for one in value)


def walk(function, names, files=False):
    """The files that a conversation passes through, and how often one is entered anew: by each line that calls into it."""
    calls = set()

    def look(frame, event, _):
        code, caller = frame.f_code, frame.f_back
        if event != "call" or not code.co_filename.startswith(ROOT) or code.co_name.startswith("<"):
            return
        while caller is not None and not caller.f_code.co_filename.startswith(ROOT):
            caller = caller.f_back
        given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if caller is None or caller.f_code.co_filename == code.co_filename:
            return
        if any(carries(frame.f_locals.get(name), names, files) for name in given):
            calls.add((caller.f_code.co_filename, caller.f_lineno, code.co_filename))

    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(None)
    found = {file for before, _, after in calls for file in (before, after)}
    return {Path(file).stem for file in found}, len(calls) - (len(found) - 1)


def test_a_conversation_passes_through_few_files(processor, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    write_sound(tmp_path / "a.wav", tone(0.5, 16000), 16000, "pcm_s16le")
    write_video(tmp_path / "a.mp4", frames=4, fps=2)
    names = {"image": str(tmp_path / "a.png"), "audio": str(tmp_path / "a.wav"), "video": str(tmp_path / "a.mp4")}
    items = [{"type": "text", "text": "What?"}, *({"type": kind, kind: name} for kind, name in names.items())]

    def read():
        processor.apply_chat_template([{"role": "user", "content": items}], tokenize=True, return_dict=True)

    read()  # imports
    assert walk(read, set(names.values())) == ({"processor", "messages", "load"}, 2)
    found, entered = walk(read, set(names.values()), files=True)
    assert found == {"processor", "messages", "load", "image", "audio", "video", "container", "integrity"}
    assert entered <= 5

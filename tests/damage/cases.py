"""The kinds of damage. A kind is a function of a random generator and the `World`; it does what a user would do with what it
has damaged, and returns in words what was accepted. What it must not do is said by `Fault`.
"""

import base64
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from tests.damage.pools import NEVER_NUMBERS, STRANGE, damaged_bytes, damaged_json

MINIATURE = Path(__file__).resolve().parents[2] / "examples/miniature"
SAMPLES = MINIATURE / "samples"
JSON_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.json",
)
TEXT = "What is 4 + 5?"


class Fault(Exception):
    """What was accepted has no meaning."""


class World:
    """What the cases of one process share: the miniature, loaded once, and a folder to write into."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.made = 0

    @cached_property
    def model(self):
        return load(MINIATURE)

    @cached_property
    def processor(self):
        return read(MINIATURE)

    def copy(self, *others):
        """A folder with links to the miniature's files, but for `others`."""
        self.made += 1
        target = self.folder / f"checkpoint{self.made}"
        target.mkdir()
        for path in MINIATURE.iterdir():
            if path.is_file() and path.suffix in (".json", ".txt", ".safetensors") and path.name not in others:
                (target / path.name).symlink_to(path)
        return target

    def write(self, name, content):
        self.made += 1
        path = self.folder / f"{self.made}{name}"
        path.write_bytes(content)
        return path


def load(folder, **options):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False, compile_steps=False, **options)


def read(folder, **options):
    from ms_omni import Qwen3OmniMoeProcessor

    return Qwen3OmniMoeProcessor.from_pretrained(folder, **options)


def inputs_of(processor, *items, **options):
    content = [{"type": "text", "text": TEXT}, *items]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, **options}
    inputs = processor.apply_chat_template([[{"role": "user", "content": content}]], **options)
    for name, value in inputs.items() if hasattr(inputs, "items") else ():
        check_finite(value, name)
    return inputs


def check_finite(value, name):
    if getattr(value, "dtype", np.dtype(int)).kind == "f" and not np.isfinite(value).all():
        raise Fault(f"{name} holds NaN or Inf")


def answer(model, inputs, speech=False, **options):
    """An answer that is checked: no NaN, no full-scale noise, no row of nothing but id 0."""
    options = {"max_new_tokens": 4, "talker_max_new_tokens": 3, "return_audio": speech, **options}
    ids, audio = model.generate(**inputs, **options)
    text = getattr(ids, "sequences", ids)
    new = np.asarray(text)[:, inputs["input_ids"].shape[1] :]
    if new.shape[1] > 2 and (new == 0).all():
        raise Fault("the answer is id 0, again and again")
    for wave in [] if audio is None else [np.asarray(wave) for wave in audio]:
        check_finite(wave, "the wave")
        if wave.size and (np.abs(wave) >= 1).mean() > 0.5:
            raise Fault("the wave is noise at full scale")
    return "answered"


def settings(rng, world):
    """One of the JSON files says something else; the model and the processor are loaded and asked."""
    name = JSON_FILES[rng.integers(0, len(JSON_FILES))]
    folder = world.copy(name)
    (folder / name).write_bytes(damaged_json(json.loads((MINIATURE / name).read_text()), rng))
    items = [{"type": "image", "image": str(SAMPLES / "circle.png")}] if rng.random() < 0.5 else []
    if name in ("config.json", "generation_config.json"):
        return answer(load(folder), inputs_of(world.processor, *items), bool(rng.random() < 0.3))
    return answer(world.model, inputs_of(read(folder), *items))


def tokenizer(rng, world):
    """A file of the tokenizer is damaged, as JSON or as bytes."""
    name = ("tokenizer.json", "vocab.json", "merges.txt")[rng.integers(0, 3)]
    content = (MINIATURE / name).read_bytes()
    folder = world.copy(name)
    is_json = name.endswith("json") and rng.random() < 0.5
    (folder / name).write_bytes(damaged_json(json.loads(content), rng) if is_json else damaged_bytes(content, rng))
    return answer(world.model, inputs_of(read(folder)))


def weights(rng, world):
    """The weights' file: its header as JSON, its bytes, or one number that is none."""
    content = (MINIATURE / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    folder, way = world.copy("model.safetensors"), rng.integers(0, 3)
    if way == 0:
        text = damaged_json(header, rng)
        content = len(text).to_bytes(8, "little") + text + data
    elif way == 1:
        content = damaged_bytes(content[: 8 + size], rng) + data
    else:
        entry = list(header.values())[rng.integers(1, len(header))]
        begin, end = entry.get("data_offsets", (0, 2))
        numbers = np.frombuffer(data, np.uint8).copy()
        piece = numbers[begin:end].view(np.uint16)
        piece[rng.integers(0, len(piece)) if rng.random() < 0.5 else slice(None)] = rng.choice([0x7FC0, 0x7F80, 0xFF80])
        content = content[: 8 + size] + numbers.tobytes()
    (folder / "model.safetensors").write_bytes(content)
    return answer(load(folder), inputs_of(world.processor), speech=True)


def files(rng, world):
    """Something else in the place of a file: a pipe, a folder, a link to itself or to nothing, a device, nothing at all."""
    names = (*JSON_FILES, "model.safetensors", "tokenizer.json", "model.safetensors.index.json", "chat_template.jinja")
    name = names[rng.integers(0, len(names))]
    folder, way = world.copy(name), rng.integers(0, 7)
    path = folder / name
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.mkdir()
    elif way < 5:
        path.symlink_to((path, "nowhere", "/dev/zero")[way - 2])
    elif way == 5:
        path.write_bytes(b"")
    return answer(load(folder), inputs_of(read(folder)))


def media(rng, world):
    """A picture, sound or video with damage, as a path, bytes or a data address, perhaps under the wrong name."""
    paths = [path for path in sorted(SAMPLES.iterdir()) if path.suffix != ".json"]
    path = paths[rng.integers(0, len(paths))]
    kind = {".png": "image", ".jpg": "image", ".wav": "audio", ".flac": "audio", ".mp4": "video"}[path.suffix]
    kind = ("image", "audio", "video")[rng.integers(0, 3)] if rng.random() < 0.1 else kind
    content = damaged_bytes(path.read_bytes(), rng)
    way = rng.integers(0, 3)
    source = content if way == 0 else f"data:{kind}/x;base64,{base64.b64encode(content).decode()}"
    if way == 2:
        suffix = paths[rng.integers(0, len(paths))].suffix if rng.random() < 0.2 else path.suffix
        source = str(world.write(suffix, content))
    options = {"use_audio_in_video": True} if kind == "video" and rng.random() < 0.5 else {}
    return answer(world.model, inputs_of(world.processor, {"type": kind, kind: source}, **options))


def media_options(rng, world):
    """A strange value for an option of a medium, of the processor or of its loading."""
    value = STRANGE[rng.integers(0, len(STRANGE))]
    item = (
        "fps",
        "nframes",
        "min_pixels",
        "max_pixels",
        "resized_height",
        "video_start",
        "video_end",
        "max_frames",
        "image",
        "video",
    )
    whole = ("max_pixels", "min_pixels", "sampling_rate", "fps", "padding", "pad_to_multiple_of", "max_length", "truncation")
    whole += (
        "use_audio_in_video",
        "return_tensors",
        "add_generation_prompt",
        "chat_template",
        "tools",
        "do_resize",
        "image_std",
    )
    way = rng.integers(0, 3)
    video = {"type": "video", "video": str(SAMPLES / "moving.mp4")}
    if way == 0:
        inputs = inputs_of(world.processor, {**video, item[rng.integers(0, len(item))]: value})
    elif way == 1:
        inputs = inputs_of(world.processor, video, **{whole[rng.integers(0, len(whole))]: value})
    else:
        inputs = inputs_of(read(MINIATURE, **{whole[rng.integers(0, len(whole))]: value}), video)
    return answer(world.model, inputs) if hasattr(inputs, "keys") and "input_ids" in inputs else "read"


def arguments(rng, world):
    """A strange value for an argument of generate, stream or say."""
    from ms_omni.generation.options import OPTIONS
    from ms_omni.generation.sampling import ID_FIELDS, NAMES

    name = sorted(OPTIONS)[rng.integers(0, len(OPTIONS))]
    value = STRANGE[rng.integers(0, len(STRANGE))]
    prefixes = ("", "thinker_", "talker_", "predictor_") if name in NAMES else ("", "thinker_")
    argument = prefixes[rng.integers(0, len(prefixes))] + name
    if rng.random() < 0.15:
        others = (
            "speaker",
            "return_audio",
            "generation_mode",
            "token2wav_chunk_frames",
            "attention_mask",
            "input_ids",
            "nonsense",
        )
        argument = name = others[rng.integers(0, len(others))]
    inputs = {**inputs_of(world.processor)}
    options = {"max_new_tokens": 4, "talker_max_new_tokens": 3, "return_audio": bool(rng.random() < 0.5), argument: value}
    if argument in inputs:
        inputs[argument] = options.pop(argument)
    if rng.random() < 0.7:
        result = world.model.generate(**inputs, **options)
        wave = result[1] if isinstance(result, tuple) else None
        check_finite(np.asarray(wave) if wave is not None else None, "the wave")
    else:
        for event in getattr(world.model, ("stream", "say")[rng.integers(0, 2)])(**inputs, **options):
            check_finite(getattr(event, "pcm", None), "the wave")
    if name in NAMES and name not in ID_FIELDS and isinstance(value, NEVER_NUMBERS):
        raise Fault(f"{argument}={value!r:.60} was taken")
    return "answered"


def arrays(rng, world):
    """The processor's arrays, one of them of another width, type, length or content."""
    items = [
        {"type": "image", "image": str(SAMPLES / "circle.png")},
        {"type": "audio", "audio": str(SAMPLES / "digits.wav")},
    ]
    inputs = {**inputs_of(world.processor, *items)}
    name = sorted(inputs)[rng.integers(0, len(inputs))]
    array, way, refused = np.array(inputs[name]), rng.integers(0, 9), False
    if way == 0:
        axis = int(rng.integers(0, array.ndim))
        inputs[name], refused = array.take(range(array.shape[axis] - 1), axis), array.ndim > 1 and axis > 0
    elif way == 1:
        inputs[name], refused = np.concatenate([array, array], -1), True
    elif way == 2 and array.dtype.kind == "f":
        array.flat[rng.integers(0, array.size)] = rng.choice([np.nan, np.inf, -np.inf])
        inputs[name], refused = array, name == "pixel_values"
    elif way == 3:
        array.flat[rng.integers(0, array.size)] = rng.choice([-1, 2**20, 2**31 - 1])
        inputs[name] = array
    elif way == 4:
        inputs[name] = array.astype([np.complex64, np.str_, np.float64, np.uint8, np.bool_][rng.integers(0, 5)])
    elif way == 5:
        inputs[name] = array[None] if rng.random() < 0.5 else array.reshape(-1)
    elif way == 6:
        inputs[name] = array[:0]
    elif way == 7:
        del inputs[name]
    else:
        inputs[name] = STRANGE[rng.integers(0, len(STRANGE))]
    length = inputs_of(world.processor, *items)["input_ids"].shape[1]
    ids = np.asarray(world.model.generate(**inputs, max_new_tokens=4, return_audio=False))[:, length:]
    if refused or (ids.shape[1] > 2 and not ids.any()):
        raise Fault(f"{name} of shape {np.shape(inputs[name])} was answered with {ids.tolist()}")
    return "answered"


def templates(rng, world):
    """A chat template with another program in it."""
    pieces = (
        "{{ 1/0 }}",
        "{{ 'a' * 10**11 }}",
        "{{ messages[9].x.y }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ {}['x'] }}",
    )
    pieces += (
        "{% if %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{{ raise_exception('no') }}",
    )
    pieces += (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10**12)|list }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 2**10**8 }}",
    )
    template = json.loads((MINIATURE / "chat_template.json").read_text())["chat_template"]
    place = int(rng.integers(0, len(template)))
    piece = (
        pieces[rng.integers(0, len(pieces))]
        if rng.random() < 0.7
        else damaged_bytes(template.encode(), rng).decode("latin-1")
    )
    return answer(world.model, inputs_of(world.processor, chat_template=template[:place] + piece + template[place:]))


KINDS = (settings, tokenizer, weights, files, media, media, media_options, arguments, arguments, arrays, templates)


def run(seed, world):
    """Runs the case of a seed; returns its kind and what became of it: "refused ...", what was accepted, or raises."""
    from ms_omni.errors import OmniError

    kind = KINDS[seed % len(KINDS)]
    try:
        return kind.__name__, kind(np.random.default_rng(seed), world)
    except OmniError as error:
        if not str(error).strip():
            raise Fault("an error without words") from error
        return kind.__name__, f"refused: {type(error).__name__}: {error}"

"""A quantised checkpoint of the published sizes with random weights, written a tensor at a time, and what answering with it takes.

    python -m tests.checkpoint.published_size write DIR --layers 40 --quantize int4
    python -m tests.checkpoint.published_size ask DIR

By hand: `write` needs no more memory than a tensor, but 0.31 GB of the disk per thinker layer and 6 GB for the rest (int4); `ask` needs
as much memory. Prints milliseconds per token and per frame of speech, the time until the first sound, and peak memory.
"""

import argparse
import json
import math
import resource
import time
import zlib
from pathlib import Path

import numpy as np

from ms_omni.checkpoint.names import sources
from ms_omni.checkpoint.safetensors import DTYPES, Pending, dtype_name, write_shards
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.checkpoint.storage import SCALE, matrix_shape, scheme
from ms_omni.config import load_named_config
from ms_omni.files import new_folder
from ms_omni.tiny import _write_settings, random_weight

SPREAD = {8: 73.9, 4: 4.61}  # standard deviation of codes that are all equally likely
POOL = 1 << 22  # random numbers that matrices which are stored as they are take in turn


def write(folder, layers, quantize):
    config = load_named_config("published")
    config.thinker_config.text_config.num_hidden_layers = layers
    config.talker_config.accept_hidden_layer = min(config.talker_config.accept_hidden_layer, layers)
    shapes = parameter_shapes(config)
    chosen = scheme(shapes, quantize)
    storages = chosen.storages(shapes)
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    tensors = []
    for name, shape in shapes.items():
        tensors += _codes(name, shape, storages[name]) if name in storages else [_plain(name, shape, pool)]
    with new_folder(folder, sum(tensor.nbytes for tensor in tensors)) as target:
        written = _write_settings(target, config, "bfloat16", True)
        write_shards(target, tensors, {"format": "ms_omni"})
        content = {
            **json.loads((target / "config.json").read_text()),
            "quantization_config": chosen.describe(made_by="random"),
        }
        (target / "config.json").write_text(json.dumps(content, indent=1))
    print(f"{folder}: {sum(tensor.nbytes for tensor in tensors) / 1e9:.2f} GB, {layers} layers of {written.model_type}")


def _codes(name, shape, storage):
    matrix = matrix_shape(name, shape)
    codes, scales = storage.shapes(matrix)
    kind = np.dtype(np.int8 if storage.bits == 8 else np.uint8)
    step = 1 / (SPREAD[storage.bits] * math.sqrt(matrix[-1]))

    def random():
        return np.random.Generator(np.random.SFC64(zlib.crc32(name.encode()))).integers(0, 256, codes, np.uint8).view(kind)

    def steps():
        return np.full(scales, step, np.float32).astype(DTYPES["BF16"])

    return [Pending(name, dtype_name(kind), codes, random), Pending(name + SCALE, "BF16", scales, steps)]


def _plain(name, shape, pool):
    source = sources(name, shape)[0]
    if math.prod(shape) < POOL:
        return Pending(name, "BF16", shape, lambda: random_weight(0, source.name, shape).astype(DTYPES["BF16"]))
    return Pending(name, "BF16", shape, lambda: (np.resize(pool, shape) / math.sqrt(shape[-1])).astype(DTYPES["BF16"]))


def ask(folder, tokens):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
    from ms_omni.outputs import AudioChunk, TextDelta

    began = time.monotonic()
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder)
    processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
    print(f"loaded in {time.monotonic() - began:.1f} s, peak {_peak():.2f} GB")
    messages = [{"role": "user", "content": [{"type": "text", "text": "Say something, please."}]}]
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    for speaks in (False, True):
        began, text, sound = time.monotonic(), [], []
        limits = {"talker_max_new_tokens": tokens} if speaks else {}
        for event in model.stream(
            **inputs, return_audio=speaks, thinker_max_new_tokens=tokens, thinker_eos_token_id=-1, **limits
        ):
            if isinstance(event, TextDelta):
                text.append(time.monotonic() - began)
            elif isinstance(event, AudioChunk):
                sound.append(time.monotonic() - began)
        each = np.median(np.diff(text)) * 1e3 if len(text) > 1 else float("nan")
        said = f"first token {text[0]:.2f} s, {len(text)} deltas, {each:.0f} ms between them (median)"
        if speaks and sound:
            said += f"; first sound {sound[0]:.2f} s, {len(sound)} chunks until {sound[-1]:.2f} s"
        print(f"{'speech' if speaks else 'text'}: {said}; peak {_peak():.2f} GB")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("write")
    command.add_argument("folder", type=Path)
    command.add_argument("--layers", type=int, default=48)
    command.add_argument("--quantize", choices=("int8", "int4"), default="int4")
    command = commands.add_parser("ask")
    command.add_argument("folder", type=Path)
    command.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.folder, arguments.layers, arguments.quantize)
    else:
        ask(arguments.folder, arguments.tokens)


if __name__ == "__main__":
    main()

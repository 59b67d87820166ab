"""A request as bytes: all that another process needs to do its part of it, and what two processes can compare."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from ..generation.options import TextOptions
from ..generation.request import Request, SpeechParams
from ..generation.sampling import SamplingParams
from ..modeling.packing import host_array

DIGEST_BYTES = 16
LENGTH_BYTES = 8


def packed(request: Request) -> bytes:
    """Functions stay where they are: they are called where the choices are made."""
    return b"".join(_parts(request))


def digest(request: Request, *more: Any) -> bytes:
    """A fingerprint of a request, and of whatever else can be printed."""
    state = hashlib.blake2b(repr(more).encode(), digest_size=DIGEST_BYTES)
    for part in _parts(request):
        state.update(part)
    return state.digest()


def _parts(request: Request) -> Iterator[Any]:
    arrays = {name: np.asarray(host_array(value), order="C") for name, value in request.inputs.items()}
    options = request.options
    header = {
        "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
        "text": asdict(request.text),
        "speech": request.speech and asdict(request.speech),
        "named": request.named,
        "given": request.given,
        "reads": [request.reads, request.grows],
        "copies": options.num_return_sequences,
        "prefill": options.prefill_tokens,
        "unspoken": options.unspoken_from,
        "whole": options.whole_logits,
        "states": options.output_hidden_states,
        "described": repr(options.described()),
    }
    line = json.dumps(header, default=lambda value: value.item()).encode()
    yield len(line).to_bytes(LENGTH_BYTES, "little")
    yield line
    for array in arrays.values():
        yield array.reshape(-1).view(np.uint8).data


def unpacked(data: bytes) -> Request:
    """The request again, with those options that decide what is computed."""
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:start])
    inputs = {}
    for name, kind, shape in header["arrays"]:
        array = np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape).copy()  # aligned and writable
        inputs[name], start = array if shape else array.item(), start + array.nbytes
    options = TextOptions(
        num_return_sequences=header["copies"],
        output_logits=header["whole"],
        output_hidden_states=header["states"],
        prefill_tokens=header["prefill"],
        unspoken_from=tuple(header["unspoken"]),
    )
    speech = header["speech"] and SpeechParams.from_dict(header["speech"])
    flags = {name: header[name] for name in ("given", "named")} | dict(zip(("reads", "grows"), header["reads"]))
    return Request(inputs, SamplingParams(**header["text"]), options, speech, **flags)

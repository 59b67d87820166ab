"""A request that travels is the same at its destination, and two that differ are told apart."""

from dataclasses import replace

import numpy as np

from ms_omni.generation.options import TextOptions
from ms_omni.generation.request import Request, SpeechParams, digest, packed, unpacked
from ms_omni.generation.sampling import SamplingParams

PARAMS = SamplingParams(
    do_sample=True, top_k=7, seed=3, eos_token_id=(4, 5), bad_words_ids=((1, 2),), sequence_bias=(((3,), -2.5),)
)
INPUTS = {
    "input_ids": np.arange(6).reshape(2, 3),
    "pixel_values": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "use_audio_in_video": True,
}
SPEECH = SpeechParams(1, PARAMS, SamplingParams(), named=False)
REQUEST = Request(
    INPUTS, PARAMS, TextOptions(num_return_sequences=2, prefill_tokens=128), SPEECH, True, named=False, prefill_only=True
)


def test_what_decides_on_the_work_arrives():
    found = unpacked(packed(REQUEST))
    assert (found.text, found.speech, found.given, found.named) == (PARAMS, SPEECH, True, False)
    assert found.prefill_only and not found.grows
    assert found.options == REQUEST.options and not found.options.whole_logits
    assert found.inputs.keys() == INPUTS.keys() and found.inputs["use_audio_in_video"] is True
    for name in ("input_ids", "pixel_values"):
        assert found.inputs[name].dtype == INPUTS[name].dtype and np.array_equal(found.inputs[name], INPUTS[name])
    wanted = replace(REQUEST, options=TextOptions(logits_processor=(print,), output_hidden_states=True))
    found = unpacked(packed(wanted)).options
    assert found.whole_logits and found.output_hidden_states and not found.logits_processor


def test_a_digest_sees_every_difference():
    ids = INPUTS["input_ids"]
    others = [
        replace(REQUEST, inputs={**INPUTS, "input_ids": changed})
        for changed in (ids + 1, ids.reshape(3, 2), ids.astype("i4"))
    ]
    others += [
        replace(REQUEST, inputs={"input_ids": ids}),
        replace(REQUEST, text=SamplingParams()),
        replace(REQUEST, speech=None),
    ]
    others += [
        replace(REQUEST, given=False),
        replace(REQUEST, named=True),
        replace(REQUEST, prefill_only=False),
        replace(REQUEST, grows=True),
        replace(REQUEST, options=TextOptions(num_return_sequences=2, prefill_tokens=256)),
        replace(REQUEST, options=TextOptions(stop_strings=("a",))),
    ]
    assert len({digest(request) for request in (REQUEST, *others)}) == 1 + len(others)
    assert digest(REQUEST) == digest(replace(REQUEST, inputs=dict(INPUTS))) != digest(REQUEST, 1)

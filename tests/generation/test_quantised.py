"""A whole model of codes answers on the kernels what it answers operator by operator, in text and in speech."""

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.modeling import ops
from ms_omni.modeling.ops import dispatch
from ms_omni.modeling.ops.reference import Reference
from tests.parallel.answers import GREEDY, compare, inputs_of


@pytest.mark.skipif(not ops.keeps_bfloat16(), reason="there are no kernels beside the operators")
@pytest.mark.parametrize(
    "geometry, storage",
    [
        ("tiny", {"quantize": "int4", "quantize_group": 32, "quantize_embeddings": True}),
        ("tiny", {"quantize": "int4", "quantize_group": 64}),
        ("odd", {"quantize": "int8", "quantize_embeddings": True}),
    ],
    ids=["int4 in groups of 32, with embeddings", "int4 in groups of 64", "int8 of odd sizes, with embeddings"],
)
def test_kernels_answer_as_the_operators(geometry, storage, checkpoint_of, use_operators):
    folder = checkpoint_of(geometry)
    inputs = inputs_of(folder, "image_audio_video")

    def said():
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, compile_steps=False, progress=False, **storage)
        ids, wave = model.generate(
            **inputs, thinker_max_new_tokens=4, eos_token_id=[], **{**GREEDY, "talker_max_new_tokens": 4}
        )
        logits = model.thinker(**inputs).logits.asnumpy()
        return {"ids": np.asarray(ids), "wave": np.asarray(wave).reshape(-1), "logits": logits}

    kernels = said()
    assert dispatch.implementation() is not Reference and np.abs(kernels["wave"]).max() > 0
    use_operators(Reference)
    compare(kernels, said())

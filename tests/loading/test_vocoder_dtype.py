"""The vocoder is float32 in a model of any dtype: as it is loaded, cast, counted and saved."""

import mindspore as ms
import pytest

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.checkpoint.load import load_checkpoint
from ms_omni.checkpoint.save import _published
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.modeling.layer import lazy_parameters
from ms_omni.parallel.predict import predict


@pytest.fixture
def model(tiny_checkpoint):
    """In bfloat16, which CPU holds and does not compute in."""
    with lazy_parameters(ms.bfloat16):
        model = Qwen3OmniMoeForConditionalGeneration(Qwen3OmniMoeConfig.from_pretrained(tiny_checkpoint))
    load_checkpoint(model, tiny_checkpoint, dtype=ms.bfloat16, progress=False)
    return model


def test_the_vocoder_is_float32_in_a_model_of_any_dtype(model, monkeypatch):
    def types(whole):
        return {(name.partition(".")[0], parameter.dtype) for name, parameter in whole.parameters_and_names()}

    half = {("thinker", ms.bfloat16), ("talker", ms.bfloat16), ("code2wav", ms.float32)}
    assert types(model) == half and model.dtype == ms.bfloat16
    held = sum(parameter.nbytes for parameter in model.get_parameters())
    assert held == predict(model.config, parameter_shapes(model.config), "ep", 1, 256, 2).held
    assert {tensor.dtype for tensor in _published(model, model.config, None)} == {"BF16"}  # of one kind, as it was published
    assert {tensor.dtype for tensor in _published(model.code2wav, model.config.code2wav_config, None)} == {"F32"}
    model.to("float32")
    assert {dtype for _, dtype in types(model)} == {ms.float32}

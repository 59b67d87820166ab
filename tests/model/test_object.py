"""What scripts for transformers call on a model: its mode, dtype, parameters, embeddings, saving."""

import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_omni
from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeThinkerForConditionalGeneration
from ms_omni.config import load_named_config
from ms_omni.errors import InputError

IDS = np.arange(20, 32).reshape(2, 6)


def test_weights_from_nothing_follow_the_configuration_and_the_seed(thinker, config):
    for name, weight in thinker.named_parameters():
        values = weight.asnumpy()
        if name.endswith("bias"):
            assert (values == 0).all(), name
        elif "norm" in name or "ln_" in name:
            assert (values == 1).all(), name
        else:
            assert abs(values.std() - 0.02) < 0.005 and abs(values.mean()) < 0.005, name
    ms.set_seed(11)
    again = Qwen3OmniMoeThinkerForConditionalGeneration._from_config(config)
    assert all((a.asnumpy() == b.asnumpy()).all() for a, b in zip(thinker.parameters(), again.parameters()))
    config.text_config.initializer_range = 0.5
    wide = Qwen3OmniMoeThinkerForConditionalGeneration(config=config)
    assert abs(wide.model.embed_tokens.weight.asnumpy().std() - 0.5) < 0.05
    assert abs(wide.visual.pos_embed.weight.asnumpy().std() - 0.02) < 0.005


def test_the_whole_model_from_nothing_answers_and_speaks():
    config = load_named_config("tiny")
    model = Qwen3OmniMoeForConditionalGeneration(config)
    scale = config.code2wav_config.layer_scale_initial_scale
    assert (model.code2wav.pre_transformer.layers[0].mlp_layer_scale.scale.asnumpy() == np.float32(scale)).all()
    assert model.code2wav.total_upsample == config.code2wav_config.samples_per_frame
    assert model.get_input_embeddings() is model.thinker.model.embed_tokens and model.can_generate()
    assert model.thinker(IDS).logits.asnumpy().std() > 0


def test_mode_dtype_and_device(thinker):
    assert thinker.eval() is thinker and not thinker.training
    assert thinker.train() is thinker and thinker.model.layers[0].training
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        same = thinker.to("cuda:0").to(ms.float32).float().cuda().cpu().to("cpu", dtype="float32")
    assert same is thinker and not said and thinker.dtype == ms.float32
    with pytest.warns(UserWarning, match="float32"):
        assert thinker.half() is thinker
    with pytest.warns(UserWarning, match="float32"):
        assert thinker.bfloat16().dtype == ms.float32
    with pytest.raises(InputError):
        thinker.to("int8")
    with pytest.warns(UserWarning, match="checkpointing"):
        thinker.gradient_checkpointing_enable()


def test_parameters(thinker):
    named = dict(thinker.named_parameters())
    assert len(named) == len(list(thinker.parameters())) == len(thinker.state_dict())
    assert thinker.num_parameters() == sum(weight.size for weight in named.values())
    assert (
        thinker.get_parameter("lm_head.weight")
        is thinker.get_parameter_or_buffer("lm_head.weight")
        is thinker.lm_head.weight
    )
    assert thinker.get_memory_footprint() == 4 * thinker.num_parameters()
    with pytest.raises(AttributeError, match="lm_tail"):
        thinker.get_parameter("lm_tail.weight")
    tables = named["model.embed_tokens.weight"].size + named["visual.pos_embed.weight"].size
    assert thinker.num_parameters(exclude_embeddings=True) == thinker.num_parameters() - tables
    assert thinker.requires_grad_(False).num_parameters(only_trainable=True) == 0
    assert "model.layers.0" in dict(thinker.named_modules()) and thinker.model in list(thinker.children())
    state = {name: Tensor(value.asnumpy() * 2) for name, value in thinker.state_dict().items()}
    thinker.load_state_dict(state)
    assert (thinker.lm_head.weight.asnumpy() == state["lm_head.weight"].asnumpy()).all()


def test_embeddings_are_exchanged_and_resized(thinker, config):
    other = Qwen3OmniMoeThinkerForConditionalGeneration(config)
    thinker.set_input_embeddings(other.get_input_embeddings())
    thinker.set_output_embeddings(other.get_output_embeddings())
    assert thinker.model.embed_tokens is other.model.embed_tokens and thinker.lm_head is other.lm_head
    thinker.tie_weights()
    before = thinker(IDS).logits.asnumpy()
    table = thinker.resize_token_embeddings(100, pad_to_multiple_of=8)
    assert table is thinker.get_input_embeddings() and table.weight.shape[0] == 104 == config.text_config.vocab_size
    after = thinker(IDS).logits.asnumpy()
    assert after.shape[-1] == 104 and (after[..., :99] == before).all()
    assert thinker(np.full((1, 3), 103)).logits.shape == (1, 3, 104)
    assert np.allclose(table.weight.asnumpy()[99:], table.weight.asnumpy()[:99].mean(0), atol=1e-6)
    assert thinker.resize_token_embeddings(40).weight.shape[0] == 40 and thinker(IDS).logits.shape[-1] == 40
    with pytest.raises(InputError, match="vocabulary"):
        thinker.visual.resize_token_embeddings(3)


def test_saved_and_loaded(thinker, tmp_path):
    expected = thinker(IDS).logits.asnumpy()
    thinker.generation_config.eos_token_id = [7, 9]
    thinker.save_pretrained(tmp_path / "whole", safe_serialization=True, max_shard_size="200KB", is_main_process=True)
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1
    again = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(tmp_path / "whole", attn_implementation="eager")
    assert again.generation_config.eos_token_id == [7, 9]  # answers end where they ended
    assert again.config._attn_implementation == again.config.text_config._attn_implementation == "eager"
    assert (again(IDS).logits.asnumpy() == expected).all() and not again.training
    other = {"lm_head.weight": Tensor(np.zeros(thinker.lm_head.weight.shape, np.float32))}
    thinker.save_pretrained(save_directory=tmp_path / "other", state_dict=other)
    assert (thinker(IDS).logits.asnumpy() == expected).all()
    silent = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(tmp_path / "other")
    assert (silent(IDS).logits.asnumpy() == 0).all()
    for words in ({"safe_serialization": False}, {"push_to_hub": True}, {"max_shard_size": "five"}, {"max_shards": 3}):
        with pytest.raises(InputError, match=next(iter(words))):
            thinker.save_pretrained(tmp_path / "wrong", **words)
    with pytest.raises(InputError, match="lm_tail"):
        thinker.save_pretrained(tmp_path / "wrong", state_dict={"lm_tail": other["lm_head.weight"]})


def test_every_class_of_transformers_module_exists_and_the_parts_are_theirs(thinker):
    names = (
        "AudioEncoder Code2Wav Code2WavDecoderBlock Code2WavTransformerModel ForConditionalGeneration PreTrainedModel "
        "PreTrainedModelForConditionalGeneration TalkerCodePredictorModel TalkerCodePredictorModelForConditionalGeneration "
        "TalkerForConditionalGeneration TalkerModel ThinkerForConditionalGeneration ThinkerModel "
        "ThinkerTextModel ThinkerTextPreTrainedModel VisionEncoder"
    )
    for name in names.split():
        assert f"Qwen3OmniMoe{name}" in dir(ms_omni) and isinstance(getattr(ms_omni, f"Qwen3OmniMoe{name}"), type)
    assert ms_omni.AutoModel is Qwen3OmniMoeForConditionalGeneration
    assert ms_omni.AutoProcessor is ms_omni.Qwen3OmniMoeProcessor and ms_omni.AutoConfig is ms_omni.Qwen3OmniMoeConfig
    assert isinstance(thinker, ms_omni.Qwen3OmniMoePreTrainedModel)
    assert isinstance(thinker.model, ms_omni.Qwen3OmniMoeThinkerTextModel)
    assert isinstance(thinker.visual, ms_omni.Qwen3OmniMoeVisionEncoder)
    assert isinstance(thinker.audio_tower, ms_omni.Qwen3OmniMoeAudioEncoder)


def test_what_has_nothing_to_do_here_is_there(thinker):
    assert thinker.zero_grad() is None and thinker.enable_input_require_grads() is None
    assert thinker.hf_device_map == {"": thinker.device}
    assert thinker.base_model is thinker.model is thinker.get_submodule("model") and thinker.get_submodule("") is thinker
    with pytest.raises(AttributeError, match="no submodule 'tail'"):
        thinker.get_submodule("tail")
    with pytest.warns(UserWarning, match="float64"):
        assert thinker.double().dtype == ms.float32


def test_a_loop_of_the_callers_own(thinker):
    ids, cache = IDS, None
    for _ in range(3):
        inputs = thinker.prepare_inputs_for_generation(ids, past_key_values=cache, attention_mask=np.ones(ids.shape, int))
        output = thinker(**inputs)
        cache = output.past_key_values
        ids = np.concatenate([ids, output.logits.asnumpy()[:, -1:].argmax(-1)], axis=1)
    assert (ids == thinker.generate(IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False)).all()


def test_the_whole_model_says_what_has_a_forward_pass():
    model = Qwen3OmniMoeForConditionalGeneration(load_named_config("tiny"))
    for call in (model, model.forward):
        with pytest.raises(InputError, match=r"model\.thinker\(\.\.\.\)"):
            call(input_ids=IDS)

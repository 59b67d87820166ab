"""Forward passes in the reference's words: of the thinker, of its parts, and of the parts that speak."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_omni
from ms_omni import Qwen3OmniMoeThinkerTextModel
from ms_omni.config import load_named_config
from ms_omni.errors import InputError

IDS = np.arange(20, 32).reshape(2, 6)


def test_outputs_by_name_key_position_and_as_a_tuple(thinker, prompt):
    output = thinker(**prompt, output_hidden_states=True, output_attentions=False, return_dict=True)
    assert output.loss is None and output["logits"] is output[0] is output.logits
    assert list(output.keys()) == ["logits", "past_key_values", "hidden_states", "rope_deltas"]
    assert len(output.hidden_states) == 5 and "attentions" not in output
    plain = thinker.forward(**prompt, use_cache=False, labels=prompt["input_ids"], return_dict=False)
    assert isinstance(plain, tuple) and plain[0].shape == () and plain[1].shape == (2, 30, 99)
    with pytest.raises(InputError, match="output_attentions"):
        thinker(**prompt, output_attentions=True)


def test_the_loss_of_one_of_several_accumulated_batches(thinker):
    labels = np.where(IDS > 22, IDS, -100)
    counted = (labels[:, 1:] != -100).sum()
    mean, part = (thinker(IDS, labels=labels, num_items_in_batch=items).loss for items in (None, ms.Tensor(40)))
    np.testing.assert_allclose(float(part), float(mean) * counted / 40, rtol=1e-6)
    with pytest.raises(InputError, match="num_items_in_batch is 0"):
        thinker(IDS, labels=labels, num_items_in_batch=0)


def test_whole_numbers_that_come_as_floats(thinker, prompt):
    expected = thinker(**{**prompt, "image_grid_thw": prompt["image_grid_thw"].astype(np.int64)}).logits.asnumpy()
    assert (thinker(**prompt).logits.asnumpy() == expected).all()
    with pytest.raises(InputError, match="whole numbers"):
        thinker(**{**prompt, "image_grid_thw": prompt["image_grid_thw"] + 0.5})


def test_positions_with_a_text_row_and_sequences_end_to_end(thinker):
    line = np.arange(6)
    expected = thinker(IDS, use_cache=False).logits.asnumpy()
    for positions in (line[None], np.tile(line, (2, 1)), np.tile(line, (3, 2, 1)), np.tile(line, (4, 2, 1))):
        assert (thinker(IDS, position_ids=positions).logits.asnumpy() == expected).all()
    packed = np.concatenate([line, line])
    found = thinker(IDS.reshape(1, -1), position_ids=np.tile(packed, (4, 1, 1)), use_cache=False).logits.asnumpy()
    assert np.allclose(found.reshape(expected.shape), expected, atol=1e-6)
    with pytest.raises(InputError, match="position_ids"):
        thinker(IDS, position_ids=np.tile(line, (2, 2, 1)))


def test_cache_position_must_say_what_the_cache_says(thinker):
    whole = thinker(IDS).logits.asnumpy()
    past = thinker(IDS[:, :4], cache_position=np.arange(4)).past_key_values
    rest = thinker(IDS[:, 4:], past_key_values=past, cache_position=Tensor([4, 5]))
    assert np.allclose(rest.logits.asnumpy(), whole[:, 4:], atol=1e-6)
    with pytest.raises(InputError, match="cache_position"):
        thinker(IDS, cache_position=np.arange(3, 9))


def test_the_decoder_alone(thinker, config):
    expected = thinker(IDS, output_hidden_states=True).hidden_states[-1].asnumpy()
    assert (thinker.model(input_ids=IDS)[0].asnumpy() == expected).all()
    assert (thinker.model(Tensor(IDS), np.ones_like(IDS)).last_hidden_state.asnumpy() == expected).all()
    embeds = thinker.get_input_embeddings()(Tensor(IDS.astype(np.int32)))
    first = thinker.model(inputs_embeds=embeds[:, :4])
    rest = thinker.model(inputs_embeds=embeds[:, 4:], past_key_values=first.past_key_values, output_router_logits=True)
    assert np.allclose(rest[0].asnumpy(), expected[:, 4:], atol=1e-6) and len(rest.router_logits) == 4
    alone = Qwen3OmniMoeThinkerTextModel(config.text_config)
    assert alone(IDS, return_dict=False)[0].shape == (2, 6, 32)
    headless = ms_omni.Qwen3OmniMoeThinkerModel(config)
    assert headless(IDS).last_hidden_state.shape == (2, 6, 32) and headless.get_output_embeddings() is None
    with pytest.raises(InputError, match="either"):
        thinker.model()
    mask = np.zeros((2, 6), bool)
    mask[:, 2] = True
    added = thinker.model(IDS, visual_pos_masks=mask, deepstack_visual_embeds=[np.ones((2, 32), np.float32)])[0].asnumpy()
    assert np.allclose(added[:, :2], expected[:, :2], atol=1e-6) and np.abs(added[:, 2:] - expected[:, 2:]).max() > 1e-3


def test_the_encoders_by_either_versions_names(thinker, prompt):
    sound = thinker.get_audio_features(prompt["input_features"], prompt["feature_attention_mask"], return_dict=True)
    assert isinstance(sound, Tensor) and sound.last_hidden_state is sound and sound.shape == (26, 32)
    mel = prompt["input_features"].transpose(1, 0, 2).reshape(20, -1)
    tower = thinker.audio_tower(mel, feature_lens=np.array([98.0, 98.0]), output_hidden_states=True)
    assert (tower.last_hidden_state.asnumpy() == sound.asnumpy()).all() and len(tower.hidden_states) == 3
    picture, deepstack = thinker.get_image_features(prompt["pixel_values"], prompt["image_grid_thw"])
    seen = thinker.visual(prompt["pixel_values"], grid_thw=prompt["image_grid_thw"], output_hidden_states=True)
    assert seen.pooler_output is seen[0] and seen["deepstack_features"] is seen[1] and len(seen.hidden_states) == 3
    assert (seen.pooler_output.asnumpy() == picture.asnumpy()).all() and len(deepstack) == 1
    assert (thinker.visual.merger(seen.last_hidden_state).asnumpy() == picture.asnumpy()).all()
    with pytest.raises(InputError, match="output_attentions"):
        thinker.get_image_features(prompt["pixel_values"], prompt["image_grid_thw"], output_attentions=True)


@pytest.fixture
def speaking():
    ms.set_seed(4)
    config = load_named_config("tiny")
    return (
        ms_omni.Qwen3OmniMoeTalkerForConditionalGeneration(config.talker_config),
        ms_omni.Qwen3OmniMoeCode2Wav(config.code2wav_config),
    )


def test_talker_and_code_predictor(speaking):
    talker, _ = speaking
    output = talker(input_ids=IDS, labels=IDS, output_router_logits=True, output_hidden_states=True)
    assert output.loss.shape == () and output.aux_loss.shape == () and output.generation_step == 0
    whole = output.logits.asnumpy()
    past = talker(inputs_embeds=talker.get_input_embeddings()(Tensor(IDS[:, :4].astype(np.int32)))).past_key_values
    assert np.allclose(talker(IDS[:, 4:], past_key_values=past).logits.asnumpy(), whole[:, 4:], atol=1e-5)

    predictor = talker.code_predictor
    rows = np.random.default_rng(0).normal(size=(2, 2, predictor.config.hidden_size)).astype(np.float32)
    first = predictor(inputs_embeds=rows)
    assert first.generation_steps == 1 and predictor.get_output_embeddings() is predictor.lm_head
    second = predictor(input_ids=IDS[:, :1], past_key_values=first.past_key_values, generation_steps=1)
    code = predictor.get_input_embeddings()[0](Tensor(IDS[:, :1].astype(np.int32))).asnumpy()
    both = predictor(inputs_embeds=np.concatenate([rows, code], axis=1))
    assert np.allclose(both.logits.asnumpy()[:, -1:], second.logits.asnumpy(), atol=1e-5)
    with pytest.raises(InputError, match="generation_steps"):
        predictor(input_ids=IDS[:, :1])


def test_the_vocoder_and_its_parts(speaking):
    _, vocoder = speaking
    config = vocoder.config
    rng = np.random.default_rng(1)
    codes = rng.integers(0, config.codebook_size, (1, config.num_quantizers, 9))
    expected = vocoder.decode(codes).asnumpy()
    pieces = vocoder.chunked_decode(codes, chunk_size=4, left_context_size=2).asnumpy()
    assert np.allclose(pieces, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(InputError, match="chunk_size"):
        vocoder.chunked_decode(codes, chunk_size=0)
    rows = rng.normal(size=(1, 5, config.hidden_size)).astype(np.float32)
    stack = vocoder.pre_transformer(inputs_embeds=rows)
    assert stack.last_hidden_state.shape == rows.shape and stack.past_key_values is None
    with pytest.raises(InputError, match="stream"):
        vocoder.pre_transformer(inputs_embeds=rows, use_cache=True)
    block = ms_omni.Qwen3OmniMoeCode2WavDecoderBlock(config, 0)
    signal = Tensor(rng.normal(size=(1, config.decoder_dim, 4)).astype(np.float32))
    assert block(signal).shape == (1, config.decoder_dim // 2, 3 * config.upsample_rates[0])


@pytest.mark.parametrize("when", ["before", "after"])
def test_graph_mode_changes_nothing(when, tiny_checkpoint, tiny_model):
    ids = IDS[:1]
    expected = tiny_model.thinker(ids).logits.asnumpy()
    written = tiny_model.thinker.generate(input_ids=ids, max_new_tokens=3)
    try:
        if when == "before":
            ms.set_context(mode=ms.GRAPH_MODE)
        thinker = ms_omni.Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
        ms.set_context(mode=ms.GRAPH_MODE)
        assert (thinker(ids).logits.asnumpy() == expected).all()
        assert (thinker.generate(input_ids=ids, max_new_tokens=3) == written).all()
        assert ms.get_context("mode") == ms.GRAPH_MODE
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)

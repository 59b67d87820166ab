"""The thinker against the reference: positions, every layer, logits and losses of every mix of media."""

import numpy as np
import pytest

from tests.parity.watching import watching
from tests.reference.cases import CASE_NAMES
from tests.reference.record_columns import columns

LOGITS_TOLERANCE = 3e-4


@pytest.mark.parametrize("name", CASE_NAMES)
def test_positions(model, thinker_values, build, name):
    case = build(thinker_values, name)
    inputs = case.inputs
    positions, deltas = model.thinker.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        use_audio_in_video=case.use_audio_in_video,
        second_per_grids=inputs.get("video_second_per_grid"),
    )
    mask = inputs["attention_mask"] == 1
    expected = thinker_values[f"{name}/positions"]
    np.testing.assert_allclose(np.asarray(positions)[:, mask], expected[:, mask], rtol=1e-6, atol=0)
    np.testing.assert_allclose(deltas, thinker_values[f"{name}/deltas"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "image_audio_video"])
def test_text_layers(model, thinker_values, build, close, name):
    """Each layer's input (with the deepstack features of the layer before), attention and mixture of experts."""
    case, layers = build(thinker_values, name), model.thinker.model.layers
    cells = {}
    for i, layer in enumerate(layers):
        cells |= {f"{i}": layer, f"{i}/attention": layer.self_attn, f"{i}/mlp": layer.mlp}
    with watching(**cells) as seen:
        model.thinker(**case.inputs, use_audio_in_video=case.use_audio_in_video, use_cache=False)
    for i in range(len(layers)):
        close(thinker_values, f"{name}/layer{i}/input", seen[f"{i}.in"][0][0], "text: layer inputs with deepstack")
        close(thinker_values, f"{name}/layer{i}/attention", seen[f"{i}/attention"][0][0], "text: attention")
        close(thinker_values, f"{name}/layer{i}/mlp", seen[f"{i}/mlp"][0][0], "text: experts")


@pytest.mark.parametrize("name", CASE_NAMES)
def test_forward(model, thinker_values, build, close, name):
    case = build(thinker_values, name)
    mask = case.inputs["attention_mask"] == 1
    out = model.thinker(
        **case.inputs,
        labels=case.labels(),
        use_audio_in_video=case.use_audio_in_video,
        output_hidden_states=True,
        output_router_logits=True,
    )
    assert len(out.hidden_states) == len(thinker_values.keys(f"{name}/hidden/"))
    for i, hidden in enumerate(out.hidden_states):
        part = "thinker: final norm" if i == len(out.hidden_states) - 1 else "thinker: hidden states"
        close(thinker_values, f"{name}/hidden/{i}", hidden.asnumpy()[mask], part)
    assert len(out.router_logits) == len(thinker_values.keys(f"{name}/router/"))
    for i, logits in enumerate(out.router_logits):
        close(thinker_values, f"{name}/router/{i}", logits.asnumpy()[mask.reshape(-1)], "thinker: router logits")
    logits = out.logits.asnumpy()
    np.testing.assert_allclose(
        logits[mask][:, columns(logits.shape[-1])], thinker_values[f"{name}/logits"], rtol=0, atol=LOGITS_TOLERANCE
    )
    close(thinker_values, f"{name}/logits", logits[mask][:, columns(logits.shape[-1])], "thinker: logits")
    close(thinker_values, f"{name}/last_logits", logits[:, -1], "thinker: logits")
    close(thinker_values, f"{name}/loss", out.loss, "thinker: loss")
    close(thinker_values, f"{name}/aux_loss", out.aux_loss, "thinker: auxiliary loss")
    np.testing.assert_allclose(out.rope_deltas, thinker_values[f"{name}/deltas"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "image_audio_video"])
def test_continuation(model, thinker_values, build, config, close, name):
    """Tokens after a prompt, through the cache; a placeholder that the model itself wrote is an ordinary token."""
    case = build(thinker_values, name)
    ids = np.array([case.continuation(config["thinker_config"])])
    cache = model.thinker(**case.inputs, use_audio_in_video=case.use_audio_in_video).past_key_values
    at_once = model.thinker(input_ids=ids, past_key_values=cache).logits.asnumpy()
    close(thinker_values, f"{name}/continuation", at_once, "thinker: logits through the cache")
    cache = model.thinker(**case.inputs, use_audio_in_video=case.use_audio_in_video).past_key_values
    steps = [model.thinker(input_ids=ids[:, i : i + 1], past_key_values=cache).logits.asnumpy() for i in range(3)]
    close(thinker_values, f"{name}/continuation", np.concatenate(steps, axis=1), "thinker: logits through the cache")


@pytest.mark.parametrize("name", CASE_NAMES)
def test_greedy_tokens(model, thinker_values, build, config, name):
    """16 tokens, and the logits that each was chosen from up to the row's end."""
    case, expected = build(thinker_values, name), thinker_values[f"{name}/generated"]
    out = model.thinker.generate(
        **case.inputs,
        use_audio_in_video=case.use_audio_in_video,
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=config["im_end_token_id"],
        pad_token_id=config["im_end_token_id"],
        return_dict_in_generate=True,
        output_scores=True,
    )
    prompt, scores = case.inputs["input_ids"], np.stack(out.scores, axis=1)
    np.testing.assert_array_equal(out.sequences[:, : prompt.shape[1]], prompt)
    np.testing.assert_array_equal(out.sequences[:, prompt.shape[1] :], expected)
    before_end = np.cumsum(expected == config["im_end_token_id"], axis=1) - (expected == config["im_end_token_id"]) == 0
    np.testing.assert_allclose(
        scores[before_end][:, columns(scores.shape[-1])],
        thinker_values[f"{name}/generated_logits"][before_end],
        rtol=0,
        atol=LOGITS_TOLERANCE,
    )


@pytest.mark.parametrize("name", ["text", "audio_in_video"])
def test_steered_tokens(model, thinker_values, build, config, name):
    """Repetition penalty, suppressed ids, a minimum length and several end ids have the reference's meaning."""
    case, options = build(thinker_values, name), thinker_values.notes[f"{name}/steering"]
    ids = model.thinker.generate(
        **case.inputs,
        use_audio_in_video=case.use_audio_in_video,
        max_new_tokens=16,
        do_sample=False,
        pad_token_id=config["im_end_token_id"],
        **options,
    )
    new = ids[:, case.inputs["input_ids"].shape[1] :]
    np.testing.assert_array_equal(new, thinker_values[f"{name}/steered"])

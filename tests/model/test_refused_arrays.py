"""Arrays of wrong widths, of wrong kinds, and with NaN in them, at every entry of the model: one error that names them."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.errors import InputError


def spoiled(x, value):
    x = x.copy()
    x.flat[x.size // 2] = value
    return x


WRONG = {
    "narrower": lambda x: x[..., :-1],
    "one wide": lambda x: x[..., :1],
    "twice as wide": lambda x: np.concatenate([x, x], -1),
    "flat": lambda x: x.reshape(-1),
    "of one more axis": lambda x: x[None],
    "without rows": lambda x: x[:0],
    "NaN": lambda x: spoiled(x, np.nan),
    "infinite": lambda x: spoiled(x, -np.inf),
    "beyond float32": lambda x: spoiled(x.astype(np.float64), 1e300),
    "text": lambda x: x.astype(str),
    "complex": lambda x: x * 1j,
    "ragged": lambda x: [[1.0], [1.0, 2.0]],
}


def entries(model):
    """{entry: (call, what fits it, the argument's name)}; widths are on the last axis of what is given."""
    thinker, talker, rng = model.thinker, model.talker, np.random.default_rng(3)
    predictor, grid = talker.code_predictor, [[1, 4, 4]]
    patches = rng.normal(size=(16, thinker.visual.patch_embed.width)).astype(np.float32)

    def rows(decoder):
        return rng.normal(size=(1, 3, decoder.config.hidden_size)).astype(np.float32)

    return {
        "pictures": (lambda x: thinker.get_image_features(x, grid), patches, "pixel_values"),
        "videos": (lambda x: thinker.get_video_features(x, grid), patches, "pixel_values_videos"),
        "vision encoder": (lambda x: thinker.visual(x, grid), patches, "pixel values"),
        "thinker": (lambda x: thinker(inputs_embeds=x), rows(thinker.model), "inputs_embeds"),
        "its decoder": (lambda x: thinker.model(inputs_embeds=x), rows(thinker.model), "inputs_embeds"),
        "talker": (lambda x: talker(inputs_embeds=x), rows(talker.model), "inputs_embeds"),
        "predictor": (lambda x: predictor(inputs_embeds=x), rows(predictor.model), "inputs_embeds"),
        "vocoder's decoder": (
            lambda x: model.code2wav.pre_transformer(inputs_embeds=x),
            rows(model.code2wav.pre_transformer),
            "inputs_embeds",
        ),
    }


@pytest.mark.parametrize(
    "entry", ["pictures", "videos", "vision encoder", "thinker", "its decoder", "talker", "predictor", "vocoder's decoder"]
)
def test_features_and_embeddings(tiny_model, entry):
    call, fits, name = entries(tiny_model)[entry]
    for how, wrong in WRONG.items():
        with pytest.raises(InputError, match=f"^{name} (has shape|holds|is no array)"):
            call(wrong(fits))
            pytest.fail(how)
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match=f"^{name} holds"):
            call(Tensor(spoiled(fits, value)))
    call(Tensor(fits))


@pytest.mark.parametrize("clips", [True, False])
def test_sound_features(tiny_model, clips):
    bins = tiny_model.config.thinker_config.audio_config.num_mel_bins
    lengths = None if clips else [20]
    for wrong in (bins // 2, bins - 1, 2 * bins, 1):
        with pytest.raises(InputError, match=rf"^input_features has shape .*{wrong}, 20\], expected .*{bins}, frames\]"):
            x = np.zeros((wrong, 20), np.float32)
            tiny_model.thinker.get_audio_features(x[None] if clips else x, None, lengths)
    sound = np.zeros((bins, 20), np.float32)
    for wrong in (spoiled(sound, np.nan), spoiled(sound, np.inf), sound.astype(str)):
        with pytest.raises(InputError, match="^input_features holds"):
            tiny_model.thinker.get_audio_features(wrong[None] if clips else wrong, None, lengths)
    with pytest.raises(InputError, match="^input_features holds"):
        tiny_model.thinker.audio_tower(spoiled(sound, np.nan), [20])


@pytest.mark.parametrize("grids", [[1, 4, 4], [[1, 4]], [["a", 4, 4]], [[1, np.nan, 4]], [[1, 4, 4, 1]], [[1, -4, -4]], []])
def test_grids(tiny_model, grids):
    pixels = np.zeros((16, tiny_model.thinker.visual.patch_embed.width), np.float32)
    with pytest.raises(InputError, match="grid_thw"):
        tiny_model.thinker.get_image_features(pixels, grids)
    config = tiny_model.config.thinker_config
    ids = np.array([[1, config.vision_start_token_id, *4 * [config.image_token_id], config.vision_end_token_id, 1]])
    with pytest.raises(InputError, match="image_grid_thw"):
        tiny_model.thinker.get_rope_index(ids, grids)
    with pytest.raises(InputError, match="image_grid_thw"):
        tiny_model.generate(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, return_audio=False, max_new_tokens=1)


IDS = np.ones((1, 3), np.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS * 10**9}, r"input_ids must lie in \[0, "),
        ({"input_ids": -IDS}, r"input_ids must lie in \[0, "),
        ({"input_ids": IDS * 1.5}, "input_ids must be integers"),
        ({"input_ids": IDS, "position_ids": IDS * np.nan}, "position_ids holds numbers that are NaN"),
        ({"input_ids": IDS, "position_ids": [["a", "b", "c"]]}, "position_ids holds"),
        ({"input_ids": IDS, "labels": IDS * 10**6}, r"labels must lie in \[0, "),
        ({"input_ids": IDS, "labels": -IDS}, r"labels must lie in \[0, "),
        ({"input_ids": IDS, "labels": IDS * 0.5}, "labels must hold whole numbers"),
        ({"input_ids": IDS, "past_key_values": "cache"}, "past_key_values is a str, expected what an earlier pass"),
    ],
)
def test_ids_positions_labels_and_caches(tiny_model, arguments, message):
    for part in (tiny_model.thinker, tiny_model.talker):
        with pytest.raises(InputError, match=message):
            part(**arguments)


def test_a_cache_of_another_decoder_or_of_other_rows(tiny_model):
    of_thinker = tiny_model.thinker.model.new_cache(1, 8)
    with pytest.raises(InputError, match="past_key_values holds .* layers with .* heads of .*, expected"):
        tiny_model.talker.code_predictor.model(inputs_embeds=entries(tiny_model)["predictor"][1], past_key_values=of_thinker)
    with pytest.raises(InputError, match="past_key_values holds 1 rows, but there are new tokens for 2"):
        tiny_model.thinker(input_ids=np.ones((2, 3), np.int64), past_key_values=of_thinker)


@pytest.mark.parametrize("steps", [0, 99, -1, "x", None])
def test_which_code_the_predictor_is_at(tiny_model, steps):
    with pytest.raises(InputError, match="generation_steps"):
        tiny_model.talker.code_predictor(input_ids=[[1]], generation_steps=steps)


def test_deepstack_features(tiny_model):
    decoder = tiny_model.thinker.model
    mask, width = np.array([[True, False, True]]), decoder.config.hidden_size
    for features in (np.zeros((2, width + 1)), np.zeros((3, width)), np.full((2, width), np.nan)):
        with pytest.raises(InputError, match="^deepstack_visual_embeds h"):
            decoder(input_ids=IDS, visual_pos_masks=mask, deepstack_visual_embeds=[features])
    with pytest.raises(InputError, match="^visual_pos_masks has shape"):
        decoder(input_ids=IDS, visual_pos_masks=mask[:, :2], deepstack_visual_embeds=[np.zeros((1, width))])


def test_under_a_gradient_widths_are_looked_at_too(tiny_model):
    with pytest.raises(InputError, match="^inputs_embeds has shape"):
        ms.value_and_grad(lambda x: tiny_model.thinker(inputs_embeds=x).logits.sum())(
            Tensor(np.zeros((1, 2, 3), np.float32))
        )

"""Arguments of the processor's `from_pretrained`: what scripts pass has its meaning, or is said, or refused."""

import json
import shutil
import warnings

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeProcessor, load_arguments
from ms_omni.errors import CheckpointError, InputError
from tests.reference.processor_cases import IMAGE, chat, picture


def load(folder, **options):
    return Qwen3OmniMoeProcessor.from_pretrained(pretrained_model_name_or_path=str(folder), **options)


def test_what_has_no_effect_is_said_once(folder, monkeypatch):
    monkeypatch.setattr(load_arguments, "_warned", set())
    given = {
        "use_fast": True,
        "trust_remote_code": True,
        "device_map": "auto",
        "torch_dtype": "auto",
        "local_files_only": True,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processor = load(folder, **given)
    said = [item for item in caught if "without effect" in str(item.message)]
    assert len(said) == 1 and said[0].filename == __file__
    assert all(word in str(said[0].message) for word in given if word != "local_files_only")
    assert processor.name_or_path == str(folder)


def test_sizes_of_pictures(folder):
    plain = load(folder)
    for options in ({"max_pixels": 4096, "min_pixels": 1024}, {"size": {"shortest_edge": 1024, "longest_edge": 4096}}):
        processor = load(folder, **options)
        assert (processor.image_processor.min_pixels, processor.video_processor.max_pixels) == (1024, 4096)
        few = processor(text=chat(IMAGE), images=picture(200, 200))["pixel_values"]
        assert len(few) < len(plain(text=chat(IMAGE), images=picture(200, 200))["pixel_values"])
    assert load(folder, do_resize=None).image_processor.do_resize
    with pytest.raises(InputError, match="min_pixels is 9 and max_pixels 4"):
        load(folder, min_pixels=9, max_pixels=4)


def test_sound(folder):
    assert load(folder, dither=0.0).feature_extractor.sampling_rate == 16_000
    with pytest.raises(CheckpointError, match="sampling_rate is 8000"):
        load(folder, sampling_rate=8000)


def test_the_tokenizer(folder):
    texts = ["a", "a longer text"]
    right = load(folder, padding_side="right", model_max_length=7, use_auth_token=None)
    assert right.tokenizer.padding_side == "right" and right.tokenizer.model_max_length == 7
    assert right(text=texts)["attention_mask"][0, -1] == 0 and right(text=texts)["attention_mask"][0, 0] == 1
    for left in (load(folder), load(folder, padding_side="left")):
        assert left(text=texts)["attention_mask"][0, -1] == 1
        np.testing.assert_array_equal(left(text=texts, padding_side="right")["input_ids"], right(text=texts)["input_ids"])


def test_a_chat_template(folder):
    processor = load(folder, chat_template="{% for m in messages %}<{{ m.role }}>{% endfor %}")
    assert processor.apply_chat_template([{"role": "user", "content": "hi"}]) == "<user>"


@pytest.mark.parametrize(
    "options, said",
    [
        ({"max_pixel": 4}, "no argument 'max_pixel'; did you mean 'max_pixels'"),
        ({"usefast": True}, "did you mean 'use_fast'"),
        ({"xyzzy": 1}, "has no argument 'xyzzy'"),
        ({"tokenizer_file": "t.json"}, "tokenizer_file is 't.json', but "),
        ({"revision": 3}, "revision is 3, expected str"),
    ],
)
def test_what_is_unknown_or_cannot_be(folder, options, said):
    with pytest.raises(InputError, match=said):
        load(folder, **options)


def test_nobody_is_asked_whether_to_run_code(folder, tmp_path):
    """transformers would ask on the terminal; whatever is answered, no code of a checkpoint is run."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "own.py").write_text("raise SystemExit('was run')")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(copy, trust_remote_code=True)


def test_how_frames_are_chosen(folder):
    processor = load(folder, fps=1.0, max_frames=8)
    assert (processor.video_processor.fps, processor.video_processor.max_frames) == (1.0, 8)
    with pytest.raises(InputError, match="num_frames is 'x'"):
        load(folder, num_frames="x")


def test_the_vision_processors_alone(folder):
    processor = load(folder)
    image = type(processor.image_processor).from_pretrained(folder, max_pixels=50000)
    assert image.max_pixels == 50000 and image.patch_size == processor.image_processor.patch_size
    assert type(processor.video_processor).from_pretrained(folder, fps=1.0).fps == 1.0
    with pytest.raises(InputError, match="no argument 'fps'"):
        type(processor.image_processor).from_pretrained(folder, fps=1.0)

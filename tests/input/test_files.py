"""The processor's files: both layouts, templates, and folders that lack something."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ms_omni.errors import CheckpointError, InputError
from ms_omni.input.processor import Qwen3OmniMoeProcessor
from ms_omni.input.tiny_processor import ADDED_TOKENS, CHAT_TEMPLATE, PREPROCESSOR_CONFIG, write_tiny_processor
from tests.reference.processor_cases import IMAGE, VIDEO, chat, frames, picture

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def beside_a_model(copy, processor):
    """The same with a config.json that fits."""
    ids = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "user", "<|audio_pad|>"])
    own = processor.image_processor
    config = {
        "model_type": "qwen3_omni_moe",
        "im_end_token_id": ids[0],
        "user_token_id": ids[1],
        "thinker_config": {
            "audio_token_id": ids[2],
            "vision_config": {
                "patch_size": own.patch_size,
                "temporal_patch_size": own.temporal_patch_size,
                "spatial_merge_size": own.merge_size,
            },
            "audio_config": {"num_mel_bins": 128},
            "text_config": {"vocab_size": len(processor.tokenizer)},
        },
    }
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def change(path, **changes):
    content = json.loads(path.read_text())
    content.update({key: value for key, value in changes.items() if value is not None})
    for key in [key for key, value in changes.items() if value is None]:
        content.pop(key, None)
    path.write_text(json.dumps(content))


def to_5x_layout(folder):
    """What transformers 5.23 writes: one nested file, a Jinja file, a list of extra tokens."""
    config = json.loads((folder / "preprocessor_config.json").read_text())
    limits = {"size": {"shortest_edge": config.pop("min_pixels"), "longest_edge": config.pop("max_pixels")}}
    nested = {
        "feature_extractor": config,
        "image_processor": {**config, **limits, "resample": 3},
        "video_processor": {**config, **limits, "resample": 3},
        "processor_class": "Qwen3OmniMoeProcessor",
    }
    (folder / "processor_config.json").write_text(json.dumps(nested))
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(template)
    change(
        folder / "tokenizer_config.json",
        extra_special_tokens=list(ADDED_TOKENS[:3]),
        added_tokens_decoder=None,
        additional_special_tokens=None,
    )
    for name in ("preprocessor_config.json", "chat_template.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()


def same(first, second):
    arguments = {
        "text": chat(IMAGE, VIDEO, "hello"),
        "images": picture(100, 150),
        "videos": [frames(4, 64, 64)],
        "fps": 2.0,
    }
    a, b = first(**arguments), second(**arguments)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    return True


def test_layout_of_5x(processor, copy):
    to_5x_layout(copy)
    other = Qwen3OmniMoeProcessor.from_pretrained(copy)
    assert other.settings.image == processor.settings.image and other.settings.video == processor.settings.video
    assert same(processor, other)
    assert other.apply_chat_template(USER) == processor.apply_chat_template(USER)


def test_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    other = Qwen3OmniMoeProcessor.from_pretrained(tmp_path / "saved")
    assert other.settings == processor.settings and other.chat_template == processor.chat_template and same(processor, other)
    other.chat_template = {"default": "{{ 1 }}", "short": "{{ 2 }}"}
    other.save_pretrained(tmp_path / "saved")
    assert Qwen3OmniMoeProcessor.from_pretrained(tmp_path / "saved").chat_template == other.chat_template
    other.chat_template = "{{ 3 }}"
    other.save_pretrained(tmp_path / "saved")
    assert Qwen3OmniMoeProcessor.from_pretrained(tmp_path / "saved").chat_template == "{{ 3 }}"


@pytest.mark.parametrize(
    "name", ["preprocessor_config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_saving_overwrites_nothing_foreign(name, processor, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=f"holds {name}, which ms_omni did not write there"):
        processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "chat_template.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "merges.txt",
        "additional_chat_templates/a.jinja",
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_is_none_is_refused_at_once(kind, name, copy):
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"{path.name} .*is not a regular file"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


@pytest.mark.parametrize("place", ["jinja", "tokenizer", "named", "none"])
def test_where_the_template_may_stand(copy, place):
    (copy / "chat_template.json").unlink()
    if place == "jinja":
        (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    elif place == "tokenizer":
        change(copy / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    elif place == "named":
        change(
            copy / "tokenizer_config.json",
            chat_template=[
                {"name": "default", "template": CHAT_TEMPLATE},
                {"name": "short", "template": "{{ messages[0].content }}"},
            ],
        )
    processor = Qwen3OmniMoeProcessor.from_pretrained(copy)
    if place == "none":
        with pytest.raises(InputError, match="has no chat template"):
            processor.apply_chat_template(USER)
        return
    assert processor.apply_chat_template(USER) == "<|im_start|>user\nhello<|im_end|>\n"
    if place == "named":
        assert processor.apply_chat_template(USER, chat_template="short") == "hello"


@pytest.mark.parametrize(
    "name",
    [
        "patch_size",
        "temporal_patch_size",
        "merge_size",
        "image_mean",
        "image_std",
        "min_pixels",
        "feature_size",
        "hop_length",
        "sampling_rate",
    ],
)
def test_missing_setting(copy, name):
    change(copy / "preprocessor_config.json", **{name: None})
    with pytest.raises(CheckpointError, match=name):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": "16"}, "patch_size is '16'"),
        ({"resample": 2}, "bicubic"),
        ({"image_mean": [0.5]}, "three numbers"),
        *(
            ({name: value}, f"{name} is {re.escape(repr(value))}")
            for name, value in (
                *(("sampling_rate", 8000), ("dither", 0.1), ("hop_length", 320), ("hop_length", 0), ("n_fft", "400")),
                *(("feature_size", "x"), ("feature_size", 0), ("padding_value", "x"), ("padding_value", float("nan"))),
                *(("chunk_length", 0), ("padding_side", "left"), ("image_std", [0, 0, 0]), ("image_mean", [0.5, 0.5, "x"])),
                *(("image_mean", float("inf")), ("do_resize", "no"), ("rescale_factor", "x"), ("rescale_factor", 0)),
                *(("max_pixels", -3), ("patch_size", 2**50)),
            )
        ),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels is 9, over max_pixels 8"),
        ({"size": {"height": 3}}, "size is"),
    ],
)
def test_settings_that_are_refused(copy, changes, complaint):
    change(copy / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"patch_size": 14}, r"patch_size of pictures is 14, vision_config.patch_size 16;.*patch_size of videos is 14"),
        ({"temporal_patch_size": 3, "merge_size": 4}, "temporal_patch_size of pictures is 3.*merge_size of videos is 4"),
        ({"feature_size": 80}, "feature_size is 80, audio_config.num_mel_bins 128"),
    ],
)
def test_settings_that_the_model_beside_them_cannot_have(beside_a_model, changes, complaint):
    Qwen3OmniMoeProcessor.from_pretrained(beside_a_model)
    change(beside_a_model / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        Qwen3OmniMoeProcessor.from_pretrained(beside_a_model)


def test_ids_of_another_model_are_refused(beside_a_model):
    copy = beside_a_model
    config = json.loads((copy / "config.json").read_text())
    change(copy / "config.json", im_end_token_id=config["im_end_token_id"] + 1, user_token_id=7)
    with pytest.raises(CheckpointError, match=r"<\|im_end\|> has the id \d+, im_end_token_id is \d+;.*user has the id \d+"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)
    change(copy / "config.json", **config)
    config["thinker_config"]["text_config"]["vocab_size"] = 5
    config["thinker_config"]["audio_token_id"] = 3
    change(copy / "config.json", **config)
    with pytest.raises(CheckpointError, match=r"audio_pad.*thinker_config.audio_token_id is 3.*vocab_size is 5"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.json", "chat_template.jinja"]
    + ["processor_config.json", "special_tokens_map.json"],
)
@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: path.write_text("[" * 200_000)], ids=["pipe", "folder", "deep"]
)
def test_what_stands_in_place_of_a_file(copy, name, make):
    """No pipe is waited for, and nothing nested deep ends in Python's words."""
    (copy / name).unlink(missing_ok=True)
    make(copy / name)
    if (copy / name).is_file() and name in ("chat_template.jinja", "special_tokens_map.json"):
        return  # the one is no JSON, and the other is not read here
    with pytest.raises(CheckpointError, match=rf"{name}|tokenizer in .* cannot be loaded"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "preprocessor_config.json"])
def test_missing_or_damaged_file(copy, name):
    (copy / name).write_text("{ not json")
    with pytest.raises(CheckpointError, match=name):
        Qwen3OmniMoeProcessor.from_pretrained(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


def test_missing_or_damaged_tokenizer(copy):
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)
    for name in ("tokenizer.json", "vocab.json"):
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


def test_foreign_tokenizer(copy):
    text = (copy / "tokenizer.json").read_text().replace("<|audio_pad|>", "<|other|>")
    (copy / "tokenizer.json").write_text(text)
    config = (copy / "tokenizer_config.json").read_text()
    (copy / "tokenizer_config.json").write_text(config.replace("<|audio_pad|>", "<|other|>"))
    change(copy / "tokenizer_config.json", audio_token=None, extra_special_tokens=None)
    with pytest.raises(CheckpointError, match=r"lacks <\|audio_pad\|>"):
        Qwen3OmniMoeProcessor.from_pretrained(copy)


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        Qwen3OmniMoeProcessor.from_pretrained("Qwen/Qwen3-Omni-30B-A3B-Instruct")


@pytest.mark.parametrize("vocab_size", [None, 320])
def test_tiny_tokenizer(tmp_path, vocab_size):
    ids = write_tiny_processor(tmp_path, vocab_size=vocab_size)
    tokenizer = Qwen3OmniMoeProcessor.from_pretrained(tmp_path).tokenizer
    assert len(tokenizer) == ids["vocab_size"] and (vocab_size is None or ids["vocab_size"] <= vocab_size)
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == [ids[token] for token in ADDED_TOKENS]
    assert [ids[token] for token in ADDED_TOKENS] == list(range(ids["<|endoftext|>"], ids["vocab_size"]))
    assert tokenizer.encode("<|im_start|>assistant\n") == [ids["<|im_start|>"], ids["assistant"], ids["newline"]]
    assert all(tokenizer.encode(word) == [ids[word]] for word in ("system", "user", "assistant"))
    text = "What do you see? 42 caf\u00e9 \u65e5\u672c\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tiny_tokenizer_needs_room(tmp_path):
    with pytest.raises(ValueError, match="at least"):
        write_tiny_processor(tmp_path, vocab_size=100)


def test_published_values():
    assert PREPROCESSOR_CONFIG["max_pixels"] == 12845056 and PREPROCESSOR_CONFIG["n_samples"] == 4800000


def test_no_heavy_imports():
    code = (
        "import sys, ms_omni.input.processor, ms_omni.media; "
        "print([m for m in ('mindspore', 'torch', 'transformers', 'librosa', 'av', 'soundfile') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_pixel_limits_of_from_pretrained(folder):
    from PIL import Image

    from ms_omni import Qwen3OmniMoeProcessor
    from ms_omni.errors import InputError

    picture = Image.new("RGB", (640, 480))
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    whole = Qwen3OmniMoeProcessor.from_pretrained(folder)(text=text, images=[picture])
    small = Qwen3OmniMoeProcessor.from_pretrained(folder, min_pixels=56 * 56, max_pixels=14 * 14 * 768)
    limited = small(text=text, images=[picture])
    assert whole["image_grid_thw"].tolist() == [[1, 30, 40]]
    assert limited["image_grid_thw"].prod() * 16 * 16 <= 14 * 14 * 768
    with pytest.raises(InputError, match="expected 0 < min_pixels <= max_pixels"):
        Qwen3OmniMoeProcessor.from_pretrained(folder, min_pixels=10**9)

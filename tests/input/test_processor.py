"""The processor as a caller sees it: conversations, batches, counts, errors."""

import numpy as np
import pytest
from PIL import Image

from ms_omni.errors import InputError, MediaError
from ms_omni.input.load import open_source
from ms_omni.input.prompt import audio_token_count
from ms_omni.media import AccessPolicy, process_mm_info
from tests.input.make_files import frame_picture, write_video
from tests.reference.processor_cases import AUDIO, IMAGE, VIDEO, chat, frames, picture, sound


class TorchLike:
    """Quacks like a PyTorch tensor."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {
        "loud": str(write_video(folder / "loud.mp4")),
        "silent": str(write_video(folder / "silent.mp4", sound=False)),
        "fast": str(write_video(folder / "fast.mp4", frames=40, fps=20)),
    }


def count(processor, inputs, token):
    return int((inputs.input_ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())


def user(*items):
    return [{"role": "user", "content": list(items)}]


def everything(videos):
    return [
        {"role": "system", "content": "You are helpful."},
        *user(
            {"type": "image", "image": picture(64, 96)},
            {"type": "audio", "audio": sound(20000)},
            {"type": "video", "video": videos["loud"]},
            {"type": "text", "text": "What is this?"},
        ),
    ]


def test_everything_in_one_conversation(processor, videos):
    inputs = processor.apply_chat_template(everything(videos), tokenize=True, return_dict=True, add_generation_prompt=True)
    assert set(inputs) == set(processor.model_input_names)
    assert inputs.input_ids.dtype == np.int64 and (inputs["attention_mask"] == 1).all()
    assert inputs.pixel_values.dtype == inputs.input_features.dtype == np.float32
    assert inputs.pixel_values.shape == (int(inputs.image_grid_thw.prod()), 3 * 2 * 16 * 16)
    assert inputs.feature_attention_mask.sum() == 125
    assert count(processor, inputs, "<|image_pad|>") == inputs.image_grid_thw.prod() // 4
    assert count(processor, inputs, "<|video_pad|>") == inputs.video_grid_thw.prod() // 4
    assert count(processor, inputs, "<|audio_pad|>") == audio_token_count(125) == 17
    assert processor.decode(inputs.input_ids[0, -3:]) == "<|im_start|>assistant\n"


def test_prompt_text(processor):
    prompt = processor.apply_chat_template(
        user({"type": "image"}, {"type": "text", "text": "Hi"}, {"type": "video"}), add_generation_prompt=True
    )
    assert prompt == chat(IMAGE, "Hi", VIDEO)
    assert processor.apply_chat_template([user("a"), user("b")]) == [
        "<|im_start|>user\na<|im_end|>\n",
        "<|im_start|>user\nb<|im_end|>\n",
    ]


def test_template_variables_and_own_template(processor):
    conversation = user({"type": "text", "text": "Hi"})
    assert processor.apply_chat_template(conversation, add_generation_prompt=True, enable_thinking=False).endswith(
        "</think>\n\n"
    )
    template = "{% for m in messages %}{{ m.role }}:{{ m.content[0].text }}{% endfor %}{{ mark }}"
    assert processor.apply_chat_template(conversation, chat_template=template, mark="!") == "user:Hi!"
    with pytest.raises(InputError, match="cannot render"):
        processor.apply_chat_template(conversation, chat_template="{{ raise_exception('no') }}")


def test_ids_alone_without_return_dict(processor):
    ids = processor.apply_chat_template(user("hello"), tokenize=True)
    assert isinstance(ids, np.ndarray) and ids.shape[0] == 1


def test_same_through_process_mm_info(processor, videos):
    conversation = everything(videos)
    direct = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, use_audio_in_video=True)
    audios, images, clips = process_mm_info(conversation, use_audio_in_video=True)
    text = processor.apply_chat_template(conversation)
    by_hand = processor(
        text=text, audio=audios, images=images, videos=clips, use_audio_in_video=True, padding=True, return_tensors="np"
    )
    for name in direct:
        np.testing.assert_array_equal(direct[name], by_hand[name], err_msg=name)


def test_batch_is_padded_on_the_left(processor, videos):
    batch = [everything(videos), user("hello")]
    inputs = processor.apply_chat_template(batch, tokenize=True, return_dict=True)
    alone = processor.apply_chat_template(batch[1], tokenize=True, return_dict=True)
    length = alone.input_ids.shape[1]
    assert (inputs.input_ids[1, :-length] == processor.pad_token_id).all() and not inputs.attention_mask[1, :-length].any()
    np.testing.assert_array_equal(inputs.input_ids[1, -length:], alone.input_ids[0])
    assert processor.tokenizer.convert_ids_to_tokens(processor.pad_token_id) == "<|endoftext|>"


def test_padding_choices(processor):
    texts = ["hello hello hello", "hi"]
    assert processor(text=texts, pad_to_multiple_of=16).input_ids.shape[1] == 16
    assert processor(text=texts, padding="max_length", max_length=40).input_ids.shape[1] == 40
    assert processor(text=texts, text_kwargs={"padding_side": "right"}).attention_mask[1, 0] == 1
    assert processor(text=texts, truncation=True, max_length=3).input_ids.shape[1] == 3
    with pytest.raises(InputError, match="padding is off"):
        processor(text=texts, padding=False)
    with pytest.raises(InputError, match="cuts off"):
        processor(text=chat(IMAGE), images=picture(64, 96), truncation=True, max_length=8)


def test_seconds_per_grid_follow_the_real_rate(processor, videos):
    """The reference says 2.0 / fps asked for, or 2.0: ours is the rate of the frames that were taken."""
    conversation = user({"type": "video", "video": videos["loud"]}, {"type": "video", "video": videos["fast"], "fps": 5})
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    np.testing.assert_allclose(inputs.video_second_per_grid, [1.0, 0.4])
    assert inputs.video_second_per_grid.dtype == np.float64
    half = processor.apply_chat_template(conversation[:1], tokenize=True, return_dict=True, fps=4.0)
    np.testing.assert_allclose(half.video_second_per_grid, [0.5, 0.4])
    few = processor.apply_chat_template(
        user({"type": "video", "video": videos["loud"]}),
        tokenize=True,
        return_dict=True,
        processor_kwargs={"num_frames": 4},
    )
    np.testing.assert_allclose(few.video_second_per_grid, [2 / (4 / 30 * 10)])


def test_frames_without_a_rate(processor):
    clip = frames(4, 64, 64)
    with pytest.warns(UserWarning, match="not known"):
        assert processor(text=chat(VIDEO), videos=[clip]).video_second_per_grid.tolist() == [2.0]
    assert processor(text=chat(VIDEO, VIDEO), videos=[clip, clip], fps=[4.0, 0.5]).video_second_per_grid.tolist() == [
        0.5,
        4.0,
    ]
    assert processor(text=chat(VIDEO), videos=[clip], videos_kwargs={"fps": 4}).video_second_per_grid.tolist() == [0.5]


def test_sounding_and_silent_videos_together(processor, videos):
    conversation = user(
        {"type": "video", "video": videos["silent"]},
        {"type": "video", "video": videos["loud"]},
        {"type": "audio", "audio": sound(16000)},
    )
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, load_audio_from_video=True)
    lengths = inputs.feature_attention_mask.sum(-1)
    assert lengths.shape == (2,) and lengths[1] == 100
    assert count(processor, inputs, "<|audio_pad|>") == audio_token_count(lengths).sum()
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    assert tokens[tokens.index("<|vision_start|>") + 1] == "<|video_pad|>"  # the silent one is a plain video
    second = tokens.index("<|vision_start|>", tokens.index("<|vision_end|>"))
    assert tokens[second + 1 : second + 3] == ["<|audio_start|>", "<|video_pad|>"]
    silent = processor.apply_chat_template(
        user({"type": "video", "video": videos["silent"]}), tokenize=True, return_dict=True, use_audio_in_video=True
    )
    assert "input_features" not in silent


def test_weaving_by_time(processor):
    """Two time steps of four tokens each, one second apart: 13 audio tokens stand between them."""
    inputs = processor(
        text=VIDEO,
        videos=[frames(4, 64, 64)],
        audio=[sound(32000)],
        fps=2.0,
        use_audio_in_video=True,
        videos_kwargs={"min_pixels": 4096, "max_pixels": 4096},
    )
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    video, audio = ["<|video_pad|>"] * 4, ["<|audio_pad|>"] * 13
    assert tokens == [
        "<|vision_start|>",
        "<|audio_start|>",
        *video,
        *audio,
        *video,
        *audio,
        "<|audio_end|>",
        "<|vision_end|>",
    ]


def test_35_seconds_are_not_cut(processor):
    inputs = processor(text=chat(AUDIO), audio=sound(35 * 16000))
    assert inputs.input_features.shape == (1, 128, 3500) and inputs.feature_attention_mask.sum() == 3500
    assert count(processor, inputs, "<|audio_pad|>") == 35 * 13


@pytest.mark.parametrize("length, tokens", [(0, 0), (1, 1), (8, 1), (9, 2), (100, 13), (101, 14), (250, 33)])
def test_audio_token_count(length, tokens):
    assert audio_token_count(length) == tokens


def test_what_the_original_loader_returns(processor):
    """qwen_omni_utils gives PIL images, float torch tensors [T, C, H, W] and numpy sounds."""
    video = frames(4, 320, 448)  # at its final size: resizing floats does not round
    ours = processor(
        text=chat(IMAGE, VIDEO, AUDIO), images=[picture(64, 96)], videos=[video], audio=[sound(9000)], fps=[2.0]
    )
    theirs = processor(
        text=[chat(IMAGE, VIDEO, AUDIO)],
        images=[picture(64, 96)],
        audio=[TorchLike(sound(9000))],
        videos=[TorchLike(video.astype(np.float32))],
        fps=[2.0],
        do_sample_frames=False,
        return_tensors="np",
    )
    pil = processor(
        text=chat(IMAGE, VIDEO, AUDIO),
        images=np.asarray(picture(64, 96)),
        audio=sound(9000),
        fps=2.0,
        videos=[[Image.fromarray(frame.transpose(1, 2, 0)) for frame in video]],
    )
    with_metadata = processor(
        text=chat(IMAGE, VIDEO, AUDIO),
        images=[picture(64, 96)],
        audio=[sound(9000)],
        videos=[(TorchLike(video), {"fps": 10.0, "total_num_frames": 20, "frames_indices": [0, 6, 13, 19]})],
    )
    for other in (theirs, pil, with_metadata):
        for name in ours:
            np.testing.assert_array_equal(ours[name], other[name], err_msg=name)


def test_fractional_pixels_are_not_rounded(processor):
    video = np.full((4, 3, 320, 448), 100.25, np.float32)
    pixels = processor(text=chat(VIDEO), videos=[video], fps=2.0).pixel_values_videos
    np.testing.assert_allclose(pixels, 100.25 / 127.5 - 1, atol=1e-6)


def test_settings_of_one_call(processor):
    def grid(**kwargs):
        return processor(text=chat(IMAGE), images=picture(480, 640), **kwargs).image_grid_thw.tolist()

    assert grid() == [[1, 30, 40]]
    assert grid(max_pixels=50000) == grid(images_kwargs={"max_pixels": 50000}) == [[1, 12, 16]]
    assert grid(size={"shortest_edge": 3136, "longest_edge": 50000}) == [[1, 12, 16]]
    with pytest.raises(InputError, match="do_resize is off"):
        processor(text=chat(IMAGE), images=picture(50, 64), do_resize=False)
    raw = processor(text=chat(IMAGE), images=np.full((64, 64, 3), 51, np.uint8), do_normalize=False).pixel_values
    np.testing.assert_allclose(raw, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    "kwargs, complaint",
    [
        ({"text": chat(IMAGE)}, "1 <|image_pad|> but 0 image"),
        ({"text": chat("a"), "images": [picture(64, 64)]}, "0 <|image_pad|>"),
        ({"text": chat(IMAGE, IMAGE), "images": [picture(64, 64)]}, "2 <|image_pad|> but 1"),
        ({"text": chat(AUDIO), "audio": [sound(900), sound(900)]}, "1 <|audio_pad|> but 2"),
        ({"text": chat(VIDEO)}, "1 <|video_pad|> but 0 video"),
        ({"text": "<|video_pad|>", "videos": [frames(4, 64, 64)], "fps": 2.0}, "must stand as"),
        (
            {
                "text": chat(VIDEO, VIDEO),
                "videos": [frames(4, 64, 64)] * 2,
                "fps": 2.0,
                "audio": [sound(900)],
                "use_audio_in_video": True,
            },
            "audio_from_video_indices",
        ),
        ({"text": None}, "text must be"),
        ({"text": []}, "text must be"),
        ({"text": [3]}, "text must be"),
        ({"text": ""}, "empty"),
        ({"text": "a", "return_tensors": "tf"}, "'tf'; expected None, 'np'"),
        ({"text": "a", "sampling_rate": 8000, "audio": []}, "8000"),
        ({"text": chat(VIDEO), "videos": [frames(4, 64, 64)], "do_sample_frames": True}, "do_sample_frames"),
        ({"text": "a", "resample": 2}, "resample is 2"),
        ({"text": "a", "do_center_crop": True}, "do_center_crop"),
        ({"text": "a", "return_overflowing_tokens": True}, "return_overflowing_tokens"),
        ({"text": "a", "text_kwargs": [1]}, "text_kwargs is a list"),
        ({"text": "a", "padding_side": "top"}, "padding_side is 'top'"),
        ({"text": "a", "audio": [sound(900)], "audios": [sound(900)]}, "older name"),
        (
            {"text": chat(AUDIO), "audio": sound(900), "audio_kwargs": {"return_attention_mask": False}},
            "return_attention_mask",
        ),
        (
            {"text": chat(AUDIO, AUDIO), "audio": [sound(900), sound(800)], "audio_kwargs": {"padding": False}},
            "padding is off",
        ),
        ({"text": chat(AUDIO), "audio": sound(900), "audio_kwargs": {"padding": "most"}}, "padding is 'most'"),
        ({"text": "a", "position_id_per_seconds": 0}, "greater than 0"),
        ({"text": chat(VIDEO), "videos": [frames(4, 64, 64)], "fps": [1.0, 2.0]}, "2 values for 1"),
        ({"text": chat(VIDEO), "videos": [frames(4, 64, 64)], "fps": 0}, "fps is 0"),
        ({"text": chat(IMAGE), "images": [picture(64, 64)], "min_pixels": 9, "max_pixels": 4}, "min_pixels"),
    ],
)
def test_refused_arguments(processor, kwargs, complaint):
    with pytest.raises(InputError) as error:
        processor(**kwargs)
    assert complaint in str(error.value)


def test_sound_is_cut_or_filled_only_when_asked(processor):
    def features(length, **options):
        return processor(text=chat(AUDIO), audio=sound(length), audio_kwargs=options)

    accepted = {"padding": True, "truncation": False, "return_attention_mask": True, "sampling_rate": 16000}
    assert features(900, **accepted).feature_attention_mask.shape == (1, 5)
    filled = features(1600, padding="max_length", max_length=4800)
    assert filled.input_features.shape == (1, 128, 30) and filled.feature_attention_mask.sum() == 10
    assert count(processor, filled, "<|audio_pad|>") == audio_token_count(10)
    cut = features(4800, truncation=True, max_length=1600)
    assert cut.feature_attention_mask.sum() == 10 and cut.input_features.shape[-1] == 10
    assert processor(text=chat(AUDIO), audio=sound(1600), padding="max_length", max_length=60).input_features.shape[-1] == 10
    with pytest.raises(MediaError, match="at least 201"):
        features(4800, truncation=True, max_length=100)


def test_mindspore_tensors(processor):
    mindspore = pytest.importorskip("mindspore")
    inputs = processor(text=chat(AUDIO), audio=sound(900), return_tensors="ms")
    assert isinstance(inputs.input_ids, mindspore.Tensor) and inputs.input_ids.dtype == mindspore.int64
    assert inputs.input_features.shape == (1, 128, 5)


def test_refused_media(processor):
    with pytest.raises(MediaError, match="nframes is 6"):
        processor(text=chat(VIDEO), videos=[frames(4, 64, 64)], num_frames=6)
    with pytest.raises(MediaError, match="at least 201"):
        processor(text=chat(AUDIO), audio=[sound(200)])
    with pytest.raises(MediaError, match="at most 200 times"):
        processor(text=chat(IMAGE), images=[picture(1, 3000)])
    with pytest.raises(MediaError, match="names no image|does not exist"):
        processor.apply_chat_template(user({"type": "image", "image": "nowhere.jpg"}), tokenize=True)
    with pytest.raises(InputError, match="names no image"):
        processor.apply_chat_template(user({"type": "image"}), tokenize=True)


def test_placeholders_typed_by_a_user_are_noticed(processor):
    with pytest.raises(InputError, match="1 <|image_pad|> but 0"):
        processor.apply_chat_template(user({"type": "text", "text": "what is <|image_pad|>?"}), tokenize=True)


def test_decoding(processor):
    ids = processor(text=["hello <|im_end|>", "caf\u00e9 \u65e5\u672c"]).input_ids
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["hello ", "caf\u00e9 \u65e5\u672c"]
    assert processor.batch_decode([row.tolist() for row in ids]) == processor.batch_decode(TorchLike(ids))
    assert processor.decode(ids[0], skip_special_tokens=True) == "hello "
    assert processor.post_process_image_text_to_text((ids, None))[0] == "hello "


def test_result_is_a_mapping(processor):
    inputs = processor(text="hello")
    assert dict(**inputs).keys() == {"input_ids", "attention_mask"} and inputs.to("npu", dtype=None) is inputs
    assert inputs.input_ids is inputs["input_ids"] and not hasattr(inputs, "pixel_values")


def test_frames_in_a_conversation(processor):
    pictures = [Image.fromarray(frame_picture(index, 64, 64)) for index in range(4)]
    inputs = processor.apply_chat_template(
        user({"type": "video", "video": pictures, "sample_fps": 4.0}), tokenize=True, return_dict=True
    )
    assert inputs.video_grid_thw[0, 0] == 2 and inputs.video_second_per_grid.tolist() == [0.5]
    bare = processor.apply_chat_template(
        user({"type": "video", "video": pictures}), tokenize=True, return_dict=True, fps=8
    )  # the rate asked of files says nothing about frames given one by one
    assert bare.video_second_per_grid.tolist() == [1.0]


def test_a_policy_says_what_may_be_opened(processor, videos):
    none = AccessPolicy(files="none")
    for conversation in (
        user({"type": "video", "video": videos["silent"]}),
        user({"type": "video_url", "video_url": {"url": videos["silent"]}}),
    ):
        with pytest.raises(MediaError, match="files of this machine are not opened here"):
            processor.apply_chat_template(conversation, tokenize=True, policy=none)
        assert processor.apply_chat_template(conversation, tokenize=True) is not None
        assert "<|video_pad|>" in processor.apply_chat_template(conversation, policy=none)
    for media in ({"videos": videos["silent"]}, {"images": "a.png"}, {"audio": ["a.wav"]}, {"videos": [["a.png", "b.png"]]}):
        with pytest.raises(MediaError, match="files of this machine are not opened here"):
            processor("", policy=none, **media)


def test_media_are_limited_together(processor, videos):
    """Pictures count at the size that the model sees: few bytes make many pixels, and many pictures no more than they are."""
    large = {"type": "image", "image": Image.new("RGB", (3000, 2000), "red"), "max_pixels": 64 * 1024}

    def held(*items, **policy):
        return processor.apply_chat_template(user(*items), tokenize=True, return_dict=True, policy=AccessPolicy(**policy))

    most = 10 * 3 * 64 * 1024
    held(*[large] * 10, decoded_bytes=most)
    with pytest.raises(MediaError, match="hold over") as caught:
        held(*[large] * 12, decoded_bytes=most)
    assert caught.value.where.startswith("message 0, item 1")
    sized = {"resized_height": 4096, "resized_width": 4096, "max_pixels": 1 << 25, "total_pixels": 1 << 40}
    with pytest.raises(MediaError, match="hold over"):  # before there is room made for it
        held({"type": "video", "video": videos["loud"], "fps": 25, **sized}, decoded_bytes=most)
    with pytest.raises(MediaError, match="hold over"):
        held({"type": "audio", "audio": np.zeros(most // 4 + 1, np.float32)}, decoded_bytes=most)


def test_pictures_are_resized_as_they_are_loaded(processor):
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    for options in ({}, {"max_pixels": 50 * 1024}, {"do_resize": False}):
        inside = {} if options else {"min_pixels": 600 * 1024}
        shown = pixels[:448, :640] if "do_resize" in options else pixels
        chat = user({"type": "image", "image": shown, **inside})
        found = processor.apply_chat_template(chat, tokenize=True, return_dict=True, **options)
        expected = processor.image_processor(Image.fromarray(shown), **{**options, **inside})
        np.testing.assert_array_equal(found["pixel_values"], expected["pixel_values"])


def test_what_was_found_before_is_taken(processor, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png", "picture")
    found = processor.apply_chat_template(user({"type": "image", "image": source}), tokenize=True, return_dict=True)
    assert len(found["image_grid_thw"]) == 1

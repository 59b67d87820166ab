"""What scripts for transformers do with a processor: its parts, its keyword arguments, its results."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from ms_omni import Qwen3OmniMoeProcessor, errors
from ms_omni.errors import InputError
from ms_omni.input.media import Media
from ms_omni.outputs import GenerateOutput, TextIds, without_speech
from tests.input.make_files import write_video
from tests.reference.processor_cases import AUDIO, IMAGE, VIDEO, chat, frames, picture, sound


@pytest.fixture
def own(folder):
    """A processor that a test may change."""
    return Qwen3OmniMoeProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("video") / "ten.mp4"))  # 30 frames, 10 per second


@pytest.fixture
def unheard(monkeypatch):
    """No remark has been made yet."""
    monkeypatch.setattr(errors, "_warned", set())


# -- parts ------------------------------------------------------------------------------------------------------------


def test_parts_give_what_the_whole_gives(processor):
    images, videos = [picture(64, 96), picture(100, 100)], [frames(4, 64, 96)]
    whole = processor(text=chat(IMAGE, IMAGE, VIDEO, AUDIO), images=images, videos=videos, audio=sound(4000), fps=2.0)
    seen = processor.image_processor(images, return_tensors="np")
    watched = processor.video_processor(videos)
    heard = processor.feature_extractor(
        sound(4000), sampling_rate=16000, padding=True, truncation=False, return_attention_mask=True, return_tensors="pt"
    )
    for part, names in (
        (seen, ("pixel_values", "image_grid_thw")),
        (watched, ("pixel_values_videos", "video_grid_thw")),
        (heard, ("input_features",)),
    ):
        for name in names:
            np.testing.assert_array_equal(part[name], whole[name], err_msg=name)
    assert type(seen.pixel_values) is np.ndarray and watched.video_grid_thw.size(1) == 3
    assert processor.image_processor.preprocess(images[0]).image_grid_thw.tolist() == [whole.image_grid_thw[0].tolist()]
    assert processor.feature_extractor(sound(4000), sampling_rate=16000).input_features.shape == (1, 128, 3000)
    assert processor.image_processor(np.zeros((2, 64, 64, 3), np.uint8)).image_grid_thw.shape == (2, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda part: setattr(part, "max_pixels", 50000),
        lambda part: setattr(part, "size", {"longest_edge": 50000}),
        lambda part: part.size.update(longest_edge=50000),
        lambda part: setattr(part, "size", {"shortest_edge": 3136, "longest_edge": 50000}),
        lambda part: part.size.__setitem__("longest_edge", 50000),
    ],
)
def test_settings_can_be_set(own, change):
    change(own.image_processor)
    assert own(text=chat(IMAGE), images=picture(480, 640)).image_grid_thw.tolist() == [[1, 12, 16]]
    assert own.image_processor.size == {"shortest_edge": own.image_processor.min_pixels, "longest_edge": 50000}
    assert own.image_processor.to_dict()["size"]["longest_edge"] == own.image_processor.to_dict()["max_pixels"] == 50000


def test_settings_of_all_parts(own):
    own.max_pixels, own.min_pixels = 40000, 4096
    assert own.video_processor.max_pixels == own.max_pixels == 40000 and own.video_processor.min_pixels == 4096
    own.image_processor.min_pixels = 50000
    with pytest.raises(InputError, match="min_pixels <= max_pixels"):
        own.image_processor(picture(64, 64))
    with pytest.raises(InputError, match="shortest_edge"):
        own.image_processor.size = {"height": 3}
    talk = [{"role": "user", "content": [{"type": "image", "image": picture(64, 64)}]}]
    large = own.apply_chat_template(talk, tokenize=True, return_dict=True, min_pixels=10**6, max_pixels=10**7)
    assert large.image_grid_thw.prod() * 16 * 16 >= 10**6  # what videos cannot be matters to videos only
    with pytest.raises(InputError, match="max_pixels is 2.5"):
        own.image_processor(picture(64, 64), max_pixels=2.5)


def test_made_of_parts(processor):
    class Foreign:  # another library's image processor: only its settings count
        def to_dict(self):
            return {
                **processor.image_processor.to_dict(),
                "image_processor_type": "Qwen2VLImageProcessor",
                "max_pixels": 50000,
            }

    made = Qwen3OmniMoeProcessor(
        image_processor=Foreign(),
        video_processor=processor.video_processor.to_dict(),
        feature_extractor=processor.feature_extractor,
        tokenizer=processor.tokenizer,
        chat_template="{{ messages[0].role }}",
    )
    assert made(text=chat(IMAGE), images=picture(480, 640)).image_grid_thw.tolist() == [[1, 12, 16]]
    assert made.video_processor == processor.video_processor and made.apply_chat_template([{"role": "user"}]) == "user"
    assert list(made.attributes) == ["image_processor", "video_processor", "feature_extractor", "tokenizer"]
    with pytest.raises(InputError, match="needs video_processor, feature_extractor"):
        Qwen3OmniMoeProcessor(image_processor=processor.image_processor, tokenizer=processor.tokenizer)


def test_as_dict_copy_and_file(own, tmp_path):
    own.image_processor.max_pixels = 50000
    content = json.loads(own.to_json_string())
    assert content["image_processor"]["max_pixels"] == 50000 and content["feature_extractor"]["feature_size"] == 128
    assert content == json.loads(json.dumps(own.to_dict())) and "Qwen3OmniMoeProcessor" in repr(own)
    with pytest.raises(InputError, match="push_to_hub"):
        own.save_pretrained(tmp_path, push_to_hub=True)
    own.save_pretrained(tmp_path)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), Qwen3OmniMoeProcessor.from_pretrained(tmp_path)):
        assert other.to_json_string() == own.to_json_string()


def test_setting_what_is_no_setting_is_refused(own):
    with pytest.raises(InputError, match="ImageProcessor has no setting 'max_pixel'.*Did you mean 'max_pixels'"):
        own.image_processor.max_pixel = 3
    with pytest.raises(InputError, match="shortest_edge"):
        own.image_processor.size.width = 3
    own.image_processor.size.longest_edge = 50000
    assert own.image_processor.max_pixels == own.image_processor.size.longest_edge == 50000


def test_the_larger_limit_yields_when_the_smaller_is_set_alone(own):
    grid = own.video_processor(frames(2, 320, 448), max_pixels=20000).video_grid_thw
    own.max_pixels = 20000  # below the least area of video frames
    assert own.video_processor(frames(2, 320, 448)).video_grid_thw.tolist() == grid.tolist()
    assert grid[0, 1:].prod() * 16 * 16 <= 20000


def test_how_frames_are_chosen_can_be_set(own, video):
    own.video_processor.min_pixels = 4096  # small frames are quick

    def steps(**options):
        talk = [{"role": "user", "content": [{"type": "video", "video": video}]}]
        told = own.apply_chat_template(talk, tokenize=True, return_dict=True, **options).video_grid_thw
        assert told.tolist() == own(text=chat(VIDEO), videos=[video], **options).video_grid_thw.tolist()
        return int(told[0, 0])

    assert steps() == 3
    own.video_processor.num_frames = 4
    assert steps() == 2 and steps(fps=4) == 6  # the call wins
    own.video_processor.num_frames, own.video_processor.fps, own.video_processor.max_frames = None, 4, 8
    assert steps() == 4
    own.video_processor.fps, own.video_processor.do_sample_frames = None, False
    assert steps() == 15


def test_pixels_that_are_rescaled_already(processor):
    pixels = np.random.default_rng(0).random((3, 64, 96), np.float32)
    once = processor.image_processor(pixels * 255).pixel_values
    np.testing.assert_allclose(processor.image_processor(pixels, do_rescale=False).pixel_values, once, atol=1e-5)
    clip = np.repeat(pixels[None], 4, 0)
    again = processor.video_processor(clip, do_rescale=False).pixel_values_videos
    np.testing.assert_allclose(again, processor.video_processor(clip * 255).pixel_values_videos, atol=1e-5)


def test_patch_options_of_one_call(processor):
    inputs = processor(text=chat(IMAGE, VIDEO), images=picture(96, 96), videos=[frames(8, 96, 96)], fps=2.0, merge_size=1)
    assert (inputs.input_ids == processor.image_token_id).sum() == inputs.image_grid_thw.prod()
    slow = processor(text=chat(VIDEO), videos=[frames(8, 96, 96)], fps=2.0, videos_kwargs={"temporal_patch_size": 4})
    assert slow.video_grid_thw[0, 0] == 2 and slow.video_second_per_grid.tolist() == [2.0]


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pt", None])
def test_arrays_do_what_scripts_for_pytorch_do_next(processor, kind):
    inputs = processor(text=[chat(IMAGE)], images=[picture(64, 96)], return_tensors=kind)
    assert inputs.to("cuda").to("float16") is inputs and inputs.pixel_values.dtype == np.float16
    assert inputs.input_ids.dtype == np.int64 and inputs["input_ids"].size(1) == inputs.input_ids.shape[-1]
    moved = {name: value.to("cuda:0", non_blocking=True) for name, value in inputs.items()}
    assert moved["pixel_values"].dim() == 2 and moved["input_ids"][:, 2:].unsqueeze(0).numel() == moved["input_ids"].size - 2
    assert inputs.to(device="npu", dtype=None) is inputs


def test_number_of_tensors_that_others_give(processor):
    assert type(processor(text="a", return_tensors="np").input_ids) is np.ndarray
    nested = processor(text="a", common_kwargs={"return_tensors": "np"})
    assert type(nested.input_ids) is np.ndarray
    assert type(processor(text="a", text_kwargs={"return_tensors": "np"}).input_ids) is np.ndarray


def test_the_tokenizer_gives_the_same_arrays(processor):
    for own in (processor.tokenizer, copy.deepcopy(processor.tokenizer), pickle.loads(pickle.dumps(processor.tokenizer))):
        inputs = own(["hello", "a"], return_tensors="pt", padding=True).to("cuda")
        assert inputs.input_ids.size(0) == 2 and inputs["attention_mask"].sum(dim=1).tolist() == [
            len(own("hello").input_ids),
            1,
        ]
        assert own.encode("hello", return_tensors="pt").dim() == 2 and isinstance(own("hello")["input_ids"], list)
        assert own.batch_decode(inputs.input_ids, skip_special_tokens=True) == ["hello", "a"]


# -- keyword arguments --------------------------------------------------------------------------------------------------


def test_unknown_arguments_warn(processor):
    with pytest.warns(UserWarning, match="no argument 'colour'; it is ignored.$"):
        processor(text="a", colour=1)
    with pytest.warns(UserWarning, match="Did you mean 'max_pixels'"):
        processor(text="a", max_pixel=1)
    with pytest.warns(UserWarning, match="images_kwargs has no argument 'fps'"):
        processor(text="a", images_kwargs={"fps": 1})
    with pytest.warns(UserWarning, match="image_processor has no argument 'max_size'"):
        processor.image_processor(picture(64, 64), max_size=3)


def test_arguments_without_a_meaning_are_said_once(processor, unheard):
    with pytest.warns(UserWarning, match="without effect here: device, do_convert_rgb"):
        processor(text="a", do_convert_rgb=True, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(text="a", do_convert_rgb=True, device="cuda", resample=Image.Resampling.BICUBIC, stride=0, text_pair=None)


def test_what_the_tokenizer_can_return(processor):
    names = ("return_token_type_ids", "return_special_tokens_mask", "return_offsets_mapping", "return_length")
    inputs = processor(
        text=[chat(IMAGE, AUDIO), "hi"],
        images=[picture(64, 64)],
        audio=sound(3000),
        return_mm_token_type_ids=True,
        text_kwargs=dict.fromkeys(names, True),
    )
    shape = inputs.input_ids.shape
    assert (
        inputs.offset_mapping.shape == (*shape, 2)
        and inputs.token_type_ids.shape == inputs.special_tokens_mask.shape == shape
    )
    assert inputs.length.tolist() == inputs.attention_mask.sum(-1).tolist()
    kinds = inputs.mm_token_type_ids
    assert (kinds == 1).sum() == inputs.image_grid_thw.prod() // 4 and (kinds == 3).sum() == 3 and kinds.shape == shape
    assert "attention_mask" not in processor(text="a", return_attention_mask=False)


def test_older_names(processor):
    new = processor(text=chat(AUDIO, IMAGE), audio=sound(900), images=picture(64, 64))
    old = processor(text=chat(AUDIO, IMAGE), audios=[sound(900)], image=picture(64, 64))
    for name in new:
        np.testing.assert_array_equal(new[name], old[name])


class Metadata:
    """As transformers' VideoMetadata: attributes."""

    def __init__(self, **values):
        vars(self).update(values)


def test_frames_with_metadata(processor):
    clip = frames(8, 64, 64)
    for known in ({"fps": 24.0, "total_num_frames": 48}, Metadata(fps=24.0, total_num_frames=48, duration=2.0)):
        inputs = processor(text=chat(VIDEO), videos=[clip], video_metadata=[known], return_metadata=True)
        assert inputs.video_second_per_grid.tolist() == [0.5] and len(inputs.video_metadata) == 1
    nested = processor(
        text=chat(VIDEO, VIDEO),
        videos=[clip, clip],
        video_metadata=[[{"fps": 4, "total_num_frames": 8}], [None]],
        fps=[None, 1],
    )
    assert nested.video_second_per_grid.tolist() == [0.5, 2.0]
    assert "video_metadata" not in nested


def test_some_of_the_frames(processor):
    clip, known = frames(12, 64, 64), {"fps": 6.0, "total_num_frames": 12}
    every_third = processor.video_processor([clip[::3]])
    by_number = processor(text=chat(VIDEO), videos=[clip], num_frames=4, video_metadata=known)
    by_rate = processor(text=chat(VIDEO), videos=[clip], do_sample_frames=True, fps=2.0, video_metadata=[known])
    for inputs in (by_number, by_rate):
        np.testing.assert_array_equal(inputs.pixel_values_videos, every_third.pixel_values_videos)
        assert inputs.video_second_per_grid.tolist() == [1.0]
    whole = processor(text=chat(VIDEO), videos=[clip], do_sample_frames=False, fps=2.0, video_metadata=[known])
    assert whole.video_grid_thw[0, 0] == 6 and whole.video_second_per_grid.tolist() == [1.0]
    assert processor.video_processor(clip, num_frames=4, return_metadata=True).video_metadata[0]["frames_indices"] == [
        0,
        3,
        6,
        9,
    ]


def test_frames_of_a_file(own, video):
    own.video_processor.min_pixels = 4096  # small frames are quick

    def steps(**options):
        talk = [{"role": "user", "content": [{"type": "video", "video": video}]}]
        told = own.apply_chat_template(talk, tokenize=True, return_dict=True, **options)
        given = own(text=chat(VIDEO), videos=[video], **options)
        assert given.video_second_per_grid.tolist() == told.video_second_per_grid.tolist()
        return int(given.video_grid_thw[0, 0]), int(told.video_grid_thw[0, 0]), told.video_second_per_grid[0]

    assert steps() == (3, 3, 1.0)
    assert steps(fps=4) == (6, 6, 0.5)
    assert steps(num_frames=4) == (2, 2, 1.5)
    assert steps(video_fps=4) == (6, 6, 0.5)
    assert steps(do_sample_frames=False) == (15, 15, 0.2)
    assert steps(do_sample_frames=False, fps=2) == (15, 15, 1.0)
    assert steps(videos_kwargs={"fps": 4, "max_frames": 8}) == (4, 4, 0.75)
    with pytest.raises(InputError, match="either fps or nframes"):
        steps(fps=1, num_frames=2)


def test_sound_tracks_of_files_that_are_given_directly(processor, video, tmp_path):
    silent = str(write_video(tmp_path / "silent.mp4", sound=False))
    talk = [{"role": "user", "content": [{"type": "video", "video": path} for path in (video, silent)]}]
    told = processor.apply_chat_template(talk, tokenize=True, return_dict=True, load_audio_from_video=True)
    given = processor(text=processor.apply_chat_template(talk), videos=[video, silent], load_audio_from_video=True)
    for name in told:
        np.testing.assert_array_equal(told[name], given[name], err_msg=name)
    mixed = processor(
        text=chat(AUDIO, VIDEO),
        audio=[sound(4000)],
        videos=[video],
        use_audio_in_video=True,
        audio_from_video_indices=[None, 0],
    )
    assert mixed.feature_attention_mask.sum(-1).tolist() == [25, told.feature_attention_mask.sum()]


def test_metadata_in_a_conversation(processor):
    talk = [{"role": "user", "content": [{"type": "video", "video": list(frames(4, 64, 64))}]}]
    inputs = processor.apply_chat_template(
        talk, tokenize=True, return_dict=True, video_metadata=[{"fps": 8.0, "total_num_frames": 4}], return_metadata=True
    )
    assert inputs.video_second_per_grid.tolist() == [0.25] and inputs.video_metadata[0]["total_num_frames"] == 4


def test_template_variables_that_nobody_reads(processor, unheard):
    talk = [{"role": "user", "content": "hi"}]
    with pytest.warns(UserWarning, match="'max_pixel', and the chat template does not read it.*Did you mean 'max_pixels'"):
        processor.apply_chat_template(talk, max_pixel=3)
    with pytest.warns(UserWarning, match="does not read documents"):
        processor.apply_chat_template(talk, documents=[{"title": "a", "text": "b"}])
    with pytest.warns(UserWarning, match="does not read tools"):
        processor.apply_chat_template(talk, chat_template="{{ messages[0].content }}", tools=[{"name": "f"}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.apply_chat_template(talk, enable_thinking=False, padding=True, num_frames=None, colour=None)


# -- results ------------------------------------------------------------------------------------------------------------


def test_decoding_takes_what_generate_returned(processor):
    ids = processor(text=["hello", "world"]).input_ids
    wave = np.zeros((1, 1, 480), np.float32)
    results = (
        ids,
        ids.tolist(),
        [ids[0], ids[1]],
        tuple(ids),
        (ids, None),
        (ids, wave),
        [ids],
        GenerateOutput(ids),
        (GenerateOutput(ids), wave),
    )
    for result in results:
        assert processor.batch_decode(result) == ["hello", "world"], type(result)
        assert processor.decode(result) == processor.post_process_image_text_to_text(result) == ["hello", "world"]
    assert (
        processor.decode(ids[0]) == processor.decode(ids[0].tolist()) == "hello" and processor.decode(ids[0, 0]) == "hello"
    )
    assert processor.batch_decode(ids[:1]) == processor.batch_decode(ids[0]) == ["hello"]
    answer = without_speech(ids.view(TextIds))
    assert processor.decode(answer[0]) == "hello" and processor.batch_decode(answer[0]) == ["hello", "world"]
    assert processor.decode([]) == "" and processor.batch_decode(ids[:, :0]) == ["", ""]
    for wrong in (wave, "hello", [0.5], None, [[1.5]]):
        with pytest.raises(InputError, match="Token ids are expected"):
            processor.batch_decode(wrong)


def test_texts_and_waves_of_a_result(processor):
    ids, waves = processor(text=["hello", "world"]).input_ids, [np.ones((1, 1, 4), np.float32), np.zeros((1, 6), np.float32)]
    assert processor.post_process_multimodal_output((ids, waves)) == ["hello", "world"]
    assert [wave.shape for wave in processor.post_process_multimodal_output((ids, waves), generation_mode="audio")] == [
        (4,),
        (6,),
    ]
    (wave,) = processor.post_process_multimodal_output((ids, waves[0]), generation_mode="audio")
    assert wave.tolist() == [1.0] * 4
    with pytest.raises(InputError, match="no sound"):
        processor.post_process_multimodal_output((ids, None), generation_mode="audio")
    with pytest.raises(InputError, match="generation_mode is 'image'"):
        processor.post_process_multimodal_output((ids, None), generation_mode="image")


def test_counts_of_tokens_without_media(processor):
    sizes, shapes, lengths = [(64, 96), (480, 640)], [(5, 320, 448)], [16000, 4000]
    counts = processor._get_num_multimodal_tokens(
        image_sizes=sizes, video_sizes=shapes, audio_lengths=lengths, max_pixels=200000
    )
    inputs = processor(
        text=chat(IMAGE, IMAGE, VIDEO, AUDIO, AUDIO),
        images=[picture(*size) for size in sizes],
        videos=[frames(*shapes[0])],
        audio=[sound(length) for length in lengths],
        fps=2.0,
        max_pixels=200000,
    )
    assert counts.num_image_patches == inputs.image_grid_thw.prod(-1).tolist()
    assert [4 * number for number in counts["num_image_tokens"]] == counts.num_image_patches
    assert [4 * number for number in counts.num_video_tokens] == inputs.video_grid_thw.prod(-1).tolist()
    assert sum(counts.num_audio_tokens) == (inputs.input_ids == processor.audio_token_id).sum()
    assert "num_audio_tokens" not in processor._get_num_multimodal_tokens(image_sizes=sizes)


def test_clips_that_were_chosen_before_stay(processor):
    clip = Media("video", "clip", frames(4, 64, 64), sample_fps=8.0)
    assert processor(text=chat(VIDEO), videos=[clip]).video_second_per_grid.tolist() == [0.25]


def test_a_conversation_by_name(processor):
    talk = [{"role": "user", "content": "hi"}]
    by_place = processor.apply_chat_template(talk)
    assert processor.apply_chat_template(conversation=talk) == by_place == processor.apply_chat_template(conversations=talk)


@pytest.mark.parametrize(
    "name, value", [("max_pixels", -3), ("max_pixels", "x"), ("image_std", 0), ("do_resize", "no"), ("rescale_factor", 0)]
)
def test_settings_that_mean_nothing_are_refused_wherever_they_are_given(own, folder, name, value):
    for attempt in (
        lambda: setattr(own.image_processor, name, value),
        lambda: own.image_processor(picture(32, 32), **{name: value}),
        lambda: own(text="hi", images_kwargs={name: value}, images=[picture(32, 32)]),
        lambda: type(own).from_pretrained(folder, **{name: value}),
    ):
        with pytest.raises(InputError, match=f"{name} is"):
            attempt()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pad_to_multiple_of": 10**12}, "pad_to_multiple_of is"),
        ({"pad_to_multiple_of": -3}, "pad_to_multiple_of is -3"),
        ({"padding": "max_length", "max_length": 1 << 26}, "would be padded to"),
        ({"truncation": True, "max_length": -1}, "max_length is -1"),
        ({"return_attention_mask": "no"}, "return_attention_mask is 'no'"),
        ({"use_audio_in_video": "no"}, "use_audio_in_video is 'no'"),
        ({"audio_kwargs": {"pad_to_multiple_of": 10**12}}, "pad_to_multiple_of is"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(own, options, words):
    with pytest.raises(InputError, match=words):
        own(text="hi", **options)


def test_words_are_no_flags_of_a_conversation(own):
    talk = [{"role": "user", "content": "hi"}]
    for name in ("tokenize", "return_dict", "add_generation_prompt", "continue_final_message", "use_audio_in_video"):
        with pytest.raises(InputError, match=f"{name} is 'no'"):
            own.apply_chat_template(talk, **{name: "no"})

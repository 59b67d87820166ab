"""Items and media as OpenAI, DashScope, datasets, Gradio and others spell them: the loader and the template agree."""

import base64
import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from ms_omni.arrays import HostArray
from ms_omni.errors import InputError, MediaError
from ms_omni.media import load_audio, load_image, process_mm_info, read_batch
from tests.input.make_files import tone, write_video

RATE = 16000
SHORTS = tone(0.25, RATE)[:, 0]
WAVE = (SHORTS / 32768).astype(np.float32)


def encoded(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


WAV = encoded(lambda file: soundfile.write(file, WAVE, RATE, format="WAV"))
PNG = encoded(lambda file: Image.effect_noise((40, 30), 60).save(file, "PNG"))
WAV_TEXT, PNG_TEXT = (base64.b64encode(data).decode() for data in (WAV, PNG))
PICTURE = Image.open(io.BytesIO(PNG))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spellings")
    (folder / "a.wav").write_bytes(WAV)
    (folder / "i.png").write_bytes(PNG)
    write_video(folder / "v.mp4", frames=4)
    return {path.suffix[1:]: str(path) for path in folder.iterdir()}


def filled(value, paths):
    """The value with "wav", "png" and "mp4" as the files' paths."""
    if isinstance(value, str):
        return paths.get(value, value)
    if isinstance(value, dict):
        return {key: filled(item, paths) for key, item in value.items()}
    return [filled(item, paths) for item in value] if isinstance(value, list) else value


def read(*items):
    """Kinds as the template sees them, and the media as the loader does."""
    conversation = [{"role": "user", "content": list(items)}]
    (messages,), _ = read_batch(conversation)
    seen = [item["type"] for item in messages[0].for_template()["content"]]
    return seen, process_mm_info(conversation, False)


class Decoder:
    """As torchcodec's AudioDecoder, which datasets returns."""

    class Samples:
        data, sample_rate = np.stack([WAVE, WAVE]), RATE

    def get_all_samples(self):
        return self.Samples


SOUNDS = {
    "OpenAI": {"type": "input_audio", "input_audio": {"data": WAV_TEXT, "format": "wav"}},
    "DashScope, data": {"type": "input_audio", "input_audio": {"data": f"data:;base64,{WAV_TEXT}"}},
    "DashScope, no type": {"audio": "wav"},
    "vLLM": {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{WAV_TEXT}"}},
    "base64": {"type": "audio", "audio": WAV_TEXT},
    "base64 in lines": {
        "type": "audio",
        "audio": "\n".join(WAV_TEXT[k : k + 76] for k in range(0, len(WAV_TEXT), 76)) + "\n",
    },
    "base64 for addresses": {"type": "audio", "audio": base64.urlsafe_b64encode(WAV).decode().rstrip("=")},
    "base64 key": {"type": "audio", "base64": WAV_TEXT},
    "LangChain": {"type": "audio", "source_type": "base64", "data": WAV_TEXT, "mime_type": "audio/wav"},
    "datasets, decoded": {"type": "audio", "audio": {"array": WAVE, "sampling_rate": RATE, "path": "gone.wav"}},
    "datasets, list": {"type": "audio", "audio": {"array": WAVE.tolist(), "sampling_rate": RATE}},
    "datasets, stored": {"type": "audio", "audio": {"bytes": WAV, "path": None}},
    "datasets, path": {"type": "audio", "audio": {"bytes": None, "path": "wav"}},
    "datasets, unfolded": {"type": "audio", "array": WAVE, "sampling_rate": RATE},
    "torchcodec": {"type": "audio", "audio": Decoder()},
    "Gradio": {"type": "audio", "audio": (RATE, SHORTS)},
    "Gradio, stereo": {"type": "audio", "audio": (RATE, np.stack([SHORTS, SHORTS], 1))},
    "librosa": {"type": "audio", "audio": (WAVE, RATE)},
    "torchaudio": {"type": "audio", "audio": (np.stack([WAVE, WAVE]), RATE)},
    "tensor": {"type": "audio", "audio": HostArray.of(WAVE[None, None])},
    "numbers": {"type": "audio", "audio": (SHORTS.tolist(), RATE)},
    "Gradio, file": {
        "path": "wav",
        "url": None,
        "size": 9,
        "orig_name": "my.wav",
        "mime_type": None,
        "is_stream": False,
        "meta": {},
    },
    "Gradio, item": {"type": "file", "file": {"path": "wav"}, "alt_text": None},
    "OpenAI, file": {"type": "file", "file": {"file_data": f"data:audio/wav;base64,{WAV_TEXT}", "filename": "a.wav"}},
    "path": {"type": "audio", "audio": Path("a.wav")},
    "open file": {"type": "audio", "audio": "file"},
    "table": {"type": "audio", "audio": "wav", "image": None, "video": "", "text": None, "audio_url": ""},
}
PICTURES = {
    "OpenAI": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_TEXT}", "detail": "low"}},
    "OpenAI, responses": {"type": "input_image", "image_url": f"data:image/png;base64,{PNG_TEXT}", "detail": "auto"},
    "DashScope": {"image": "png"},
    "Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG_TEXT}},
    "datasets": {"type": "image", "image": {"bytes": PNG, "path": "i.png"}},
    "decoded": {"type": "image", "image": PICTURE},
    "bare": PICTURE,
    "Gradio": {"type": "image", "image": {"path": "png", "url": "http://127.0.0.1:1/i.png"}},
    "Gradio, editor": {"type": "image", "image": {"background": None, "layers": [], "composite": np.asarray(PICTURE)}},
    "base64": {"type": "image", "image": PNG_TEXT},
    "bytes": {"type": "image", "image": io.BytesIO(PNG)},
    "table": {"type": "image", "image": "png", "audio": None, "text": ""},
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(paths, name):
    item = filled(SOUNDS[name], paths)
    if name == "open file":
        item["audio"] = open(paths["wav"], "rb")
    elif name == "path":
        item["audio"] = Path(paths["wav"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seen, (audios, images, videos) = read(item, {"type": "text", "text": "?", "image": None, "audio": ""})
    assert seen == ["audio", "text"] and images is videos is None
    np.testing.assert_allclose(audios[0], WAVE, atol=1e-4)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(paths, name):
    seen, (audios, images, videos) = read(filled(PICTURES[name], paths), {"text": "?"})
    assert seen == ["image", "text"] and audios is videos is None
    np.testing.assert_array_equal(np.asarray(images[0]), np.asarray(PICTURE.convert("RGB")))


@pytest.mark.parametrize(
    "item",
    [
        {"type": "video_url", "video_url": {"url": "mp4"}},
        {"type": "input_video", "input_video": {"path": "mp4"}},
        {"video": "mp4", "fps": 10},
        {"type": "video", "video": ["png", "png", "png", "png"]},
        {"video": [{"bytes": PNG}] * 4},
        {"type": "file", "file": {"file_data": "data:video/mp4;base64,%s"}},
        {"path": "mp4", "mime_type": "video/mp4"},
        {"type": "video_url", "video_url": {"url": "mp4", "nframes": 4}},
    ],
)
def test_videos(paths, item):
    item = filled(item, paths)
    if item.get("type") == "file":
        item["file"]["file_data"] %= base64.b64encode(Path(paths["mp4"]).read_bytes()).decode()
    seen, (_, _, videos) = read(item)
    assert seen == ["video"] and len(videos[0]) == 4


@pytest.mark.parametrize(
    "item, texts",
    [
        ({"type": "input_text", "text": "hi"}, ["hi"]),
        ({"type": "output_text", "text": "hi", "annotations": []}, ["hi"]),
        ({"text": "hi"}, ["hi"]),
        ("hi", ["hi"]),
        ({"type": "text", "text": ""}, [""]),
        ({"text": 3}, ["3"]),
        ({"text": None, "image": None}, []),
        ({}, []),
        (None, []),
    ],
)
def test_texts(item, texts):
    (messages,), _ = read_batch([{"role": "user", "content": [item]}])
    assert [part["text"] for part in messages[0].for_template()["content"]] == texts


@pytest.mark.parametrize("nothing", [None, "", float("nan"), np.float32("nan"), [], {}, {"bytes": None, "path": None}])
@pytest.mark.parametrize(
    "item",
    [
        {"type": "text", "text": "hi"},
        {"text": "hi"},
        {"type": "image", "image": "a.png", "max_pixels": 99},
        {"image": "a.png"},
        {"audio_url": {"url": "a.wav"}},
        {"type": "video", "path": "a.mp4", "fps": 2.0},
    ],
)
def test_what_is_not_given_is_absent_for_loader_and_template_alike(item, nothing):
    """Tables of Arrow and pandas give every row every column."""
    columns = ("type", "text", "image", "audio", "video", "image_url", "input_audio", "path", "url", "file", "source")
    filled = {**dict.fromkeys((*columns, "min_pixels", "max_pixels", "fps", "nframes", "video_start"), nothing), **item}
    message = {"role": "user", "content": [item]}
    ((plain,),), _ = read_batch([message])
    ((same,),), _ = read_batch([{**message, "content": [filled, nothing], "tool_calls": nothing, "name": nothing}])
    assert same.for_template() == plain.for_template()
    assert [(one.kind, one.value, one.options) for one in same.media] == [(i.kind, i.value, i.options) for i in plain.media]


@pytest.mark.parametrize("nothing", [None, float("nan"), []])
def test_a_text_item_needs_a_text(nothing):
    for item in ({"type": "text", "text": nothing, "image": nothing}, {"type": "text"}):
        with pytest.raises(InputError, match=r"message 0, item 0 is of type text and holds no text"):
            read_batch([{"role": "user", "content": [item]}])


def test_options_of_a_column_with_gaps_are_floats():
    ((message,),), _ = read_batch([{"role": "user", "content": [{"image": "a.png", "min_pixels": 3136.0}]}])
    assert message.media[0].options.sizes.min_pixels == 3136
    with pytest.raises(InputError, match=r"min_pixels is 0\.5; expected a whole number"):
        read_batch([{"role": "user", "content": [{"image": "a.png", "min_pixels": 0.5}]}])


@dataclasses.dataclass
class ChatMessage:
    """As Gradio's."""

    role: str
    content: object
    metadata: dict = dataclasses.field(default_factory=dict)


class Pydantic:
    """As OpenAI's message objects."""

    def model_dump(self):
        return {"role": "assistant", "content": "Hm.", "refusal": None, "tool_calls": None}


class Chat:
    """As the pipelines of transformers."""

    def __init__(self, messages):
        self.messages = messages


def test_messages_of_other_kinds(paths):
    talk = [{"role": "developer", "content": "A"}, ChatMessage("user", {"path": paths["wav"]}), Pydantic()]
    for conversation, expected in ((talk, False), ([talk], True), (Chat(talk), False), ([Chat(talk)], True)):
        (messages,), several = read_batch(conversation)
        assert several is expected and [message.role for message in messages] == ["system", "user", "assistant"]
        assert messages[1].content[0].kind == "audio" and messages[2].content == "Hm." and not messages[2].rest


def test_rows_of_a_data_frame(paths):
    item = {"type": "audio", "audio": paths["wav"], "text": float("nan"), "image": float("nan")}
    content = np.array([item, {"type": "text", "text": "?", "audio": float("nan")}], object)
    talk = np.array([{"role": "system", "content": float("nan")}, {"role": "user", "content": content}], object)
    (messages,), several = read_batch(talk)
    assert not several and messages[0].content == "" and [part.kind for part in messages[1].content] == ["audio", "text"]


@pytest.mark.parametrize(
    "item, complaint",
    [
        ({"type": "text", "text": "hi", "image": "png"}, "of type text and names image"),
        ({"type": "image", "image": "png", "audio": "wav"}, "of type image and names image and audio"),
        ({"image": "png", "text": "hi"}, "make two items"),
        ({"type": "image", "file_id": "file-1"}, "names no image"),
        ({"type": "image", "image": {"file_id": "file-1"}}, "file_id"),
        ({"type": "file", "file": {"path": "notes.txt"}}, "do not tell"),
        ({"type": "audio", "audio": {"codes": 3}}, "dict with codes"),
        ({"type": "input_audio", "input_audio": {"data": "no base64!"}}, "not valid base64"),
        ({"type": "audio", "audio": {"array": WAVE, "sampling_rate": "fast"}}, "sampling rate is 'fast'"),
        ({"type": "text", "text": ["hi"]}, "text is a list"),
        ({"type": "thinking", "text": "hi"}, "type 'thinking'"),
        ({"type": ["text"]}, "type \\['text'\\]"),
        ([{"type": "text"}], "is a list"),
    ],
)
def test_refused(paths, item, complaint):
    with pytest.raises((InputError, MediaError), match=complaint):
        read(filled(item, paths) if isinstance(item, dict) else item)


def test_a_caption_beside_a_medium_is_said(paths):
    with pytest.warns(UserWarning, match="the text of an item of type image is ignored"):
        read({"type": "image", "image": paths["png"], "text": "a caption"})


def test_what_is_no_option_is_said(paths):
    with pytest.warns(UserWarning, match="size not known for image items"):
        read({"type": "image", "image": paths["png"], "size": 9})
    with pytest.warns(UserWarning, match="max_pixel not known for image items"):
        read({"image": paths["png"], "max_pixel": 9})


def test_a_long_name_is_a_file_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a" * 80
    Path(name).write_bytes(PNG)
    assert load_image(name).size == (40, 30)
    with pytest.raises(MediaError, match="does not exist"):
        load_image("folder/picture.png")
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        load_image("b" * 80)


def test_a_file_that_was_just_written(paths):
    file = io.BytesIO()
    soundfile.write(file, WAVE, RATE, format="WAV")  # stands at its end
    assert len(load_audio(file)) == len(load_audio(file)) == len(WAVE)


@pytest.mark.parametrize(
    "array",
    [
        SHORTS,
        SHORTS.astype(np.int32) << 16,
        SHORTS.astype(np.int64),
        (WAVE * 127).astype(np.int8),
        (WAVE * 127 + 128).astype(np.uint8),
        WAVE.astype(np.float64),
        np.stack([SHORTS] * 6, 1),
        WAVE[:, None],
    ],
)
def test_arrays_are_scaled_and_mixed(array):
    sound = load_audio(array)
    assert sound.dtype == np.float32 and sound.shape == WAVE.shape
    np.testing.assert_allclose(sound, WAVE, atol=0.02)
    left = np.stack([WAVE, np.zeros_like(WAVE)])
    np.testing.assert_allclose(load_audio(left), WAVE / 2, atol=1e-6)

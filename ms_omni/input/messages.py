"""A conversation, in any of its spellings: read once, for the loader and the chat template alike, and rendered as a prompt."""

from __future__ import annotations

import dataclasses
import json
import mimetypes
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.arrays import to_array
from ms_omni.errors import InputError, MediaError
from ms_omni.files import read_text
from ms_omni.input.media import OPTION_KEYS, ItemOptions, item_options
from ms_omni.input.sources import DICT_ACCEPTED, decode_base64

KINDS = ("image", "audio", "video")
_TYPES = {"text": "text", "input_text": "text", "output_text": "text", "file": "file", "input_file": "file"} | {
    spelling: kind for kind in KINDS for spelling in (kind, f"{kind}_url", f"input_{kind}")
}
_ROLES = {"developer": "system", "function": "tool"}  # OpenAI's other names
_END = "<|continued from here|> "
# In the order of preference: decoded samples, encoded bytes, text that stands for bytes, files and addresses, and what wraps these.
_ARRAY, _BYTES, _TEXT = ("array",), ("bytes",), ("data", "base64", "file_data", "b64_json")
_LOCATIONS = ("path", "file_path", "url", "uri", "file_url")
_WRAPPERS = ("file", "source", "composite", "image", "audio", "video", "image_url", "audio_url", "video_url", "input_audio")
SOURCE_KEYS = (*_ARRAY, *_BYTES, *_TEXT, *_LOCATIONS, "file", "source")
_RATES = ("sampling_rate", "sample_rate")
_MEDIA_TYPES = {  # endings that Python's table leaves to the system
    **dict.fromkeys((".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wav", ".mp3", ".caf", ".w64"), "audio"),
    **dict.fromkeys((".mkv", ".webm", ".flv", ".m4v", ".ts", ".mp4", ".mov", ".avi"), "video"),
    **dict.fromkeys((".webp", ".avif", ".heic", ".heif", ".jpg", ".jpeg", ".png", ".qoi"), "image"),
}
REQUEST = "Read this text aloud."
_NOT_BLANK = re.compile(r"\S")


@dataclass(frozen=True)
class Item:
    """One part of a message.

    Attributes:
        kind: "text", "image", "audio" or "video".
        value: the text; or the medium in any spelling that its decoder reads, None for a bare placeholder.
        stated: what else the item says (`max_pixels`, `fps`, ...), for the template.
        where: for error messages.
        raw: the item as it was given.
        options: what it states, checked.
    """

    kind: str
    value: Any
    stated: Mapping[str, Any]
    where: str
    raw: Any
    options: ItemOptions = ItemOptions()

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: plain type, no keys of other kinds, and not the medium itself."""
        return {**self.stated, "type": self.kind, self.kind: self.value if self.kind == "text" else ""}


@dataclass(frozen=True)
class Message:
    """One turn: its role, its text or items, and what else it holds (`tool_calls`, `name`, ...)."""

    role: str
    content: str | list[Item]
    rest: Mapping[str, Any]

    @property
    def media(self) -> list[Item]:
        """Its pictures, sounds and videos, in order."""
        return [] if isinstance(self.content, str) else [item for item in self.content if item.kind != "text"]

    @property
    def texts(self) -> list[str]:
        """Its texts, in order."""
        return (
            [self.content] if isinstance(self.content, str) else [item.value for item in self.content if item.kind == "text"]
        )

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        content = self.content if isinstance(self.content, str) else [item.for_template() for item in self.content]
        return {**self.rest, "role": self.role, "content": content}


def read_batch(conversations: Any) -> tuple[list[list[Message]], bool]:
    """The messages of each conversation, and whether several were given (rather than one).

    Args:
        conversations: a list of messages, or a list of those. A message is a dict with a role and content, or an object
            that has them; content is a text, an item or a list of items. Keys that are None or empty are absent.

    Raises:
        InputError: not a list of messages, nor a list of those; an item of unknown type or with several media.
    """
    conversations = _listed(getattr(conversations, "messages", conversations))
    if _as_mapping(conversations) is not None:
        raise InputError("A conversation is a list of messages; got a single message. Put it in a list.")
    if not isinstance(conversations, (list, tuple)) or not conversations:
        raise InputError(f"A conversation is a non-empty list of messages; got {_kind_of(conversations)}.")
    several = isinstance(_listed(conversations[0]), (list, tuple)) or hasattr(conversations[0], "messages")
    batch = [_listed(getattr(item, "messages", item)) for item in conversations] if several else [conversations]
    read = []
    for index, conversation in enumerate(batch):
        if not isinstance(conversation, (list, tuple)) or not conversation:
            raise InputError(f"Conversation {index} must be a non-empty list of messages; got {_kind_of(conversation)}.")
        where = f"Conversation {index}, " if len(batch) > 1 else ""
        read.append([_read_message(message, f"{where}message {number}") for number, message in enumerate(conversation)])
    return read, several


def read_item(item: Any, where: str = "The item") -> Item:
    """One item of a message's content.

    Raises:
        InputError: an unknown type, no type where the keys leave it open, or more than one medium.
    """
    if isinstance(item, str):
        return Item("text", item, {}, where, item)
    if isinstance(item, Image.Image):
        return Item("image", item, {}, f"{where} (image)", item)
    mapping = _as_mapping(item)
    if mapping is None:
        raise InputError(f"{where} is a {type(item).__name__}; expected a dict such as {{'type': 'text', 'text': ...}}.")
    given = {key: value for key, value in mapping.items() if is_given(value)}
    kind = _kind(given, where)
    if kind == "text":
        rest = {key: value for key, value in given.items() if key not in ("type", "text")}
        return Item("text", _text(mapping.get("text"), where), rest, where, item)
    where = f"{where} ({kind})"
    names = (kind, f"{kind}_url", f"input_{kind}")
    keys = [key for key in (*names, *SOURCE_KEYS) if key in given]
    if len(keys) > 1 and any(key in names for key in keys):
        raise InputError(f"{where} names its {kind} {len(keys)} times ({', '.join(keys)}); keep one.")
    try:
        value = unwrapped(given[keys[0]] if keys and keys[0] in names else given, where) if keys else None
    except MediaError as error:
        raise InputError(str(error)) from error
    inner = given.get(keys[0]) if keys else None
    stated = {key: inner[key] for key in OPTION_KEYS[kind] if is_given(inner.get(key))} if isinstance(inner, Mapping) else {}
    # Gradio's dict of a file has many keys.
    is_file = _TYPES.get(given.get("type") or "file") == "file" and not (keys and keys[0] in names)
    stated |= {key: given[key] for key in given if key in OPTION_KEYS[kind] or not (is_file or key in _KNOWN)}
    return Item(kind, value, stated, where, item, item_options(kind, stated, where))


def _read_message(message: Any, where: str) -> Message:
    mapping = _as_mapping(message)
    if mapping is None or not is_given(mapping.get("role")):
        raise InputError(f"{where} must be a dict with a role and content; got {_kind_of(message)}.")
    rest = {key: value for key, value in mapping.items() if is_given(value) and key not in ("role", "content")}
    role, content = str(_ROLES.get(mapping["role"], mapping["role"])), _listed(mapping.get("content"))
    if not is_given(content) or isinstance(content, str):
        return Message(role, content if isinstance(content, str) else "", rest)
    if role == "tool" and _is_data(content):
        return Message(role, json.dumps(content, ensure_ascii=False, default=str), rest)
    if not isinstance(content, (list, tuple)):
        content = [content]
    items = [read_item(item, f"{where}, item {index}") for index, item in enumerate(content) if not _is_nothing(item)]
    return Message(role, items, rest)


def _kind(given: Mapping[str, Any], where: str) -> str:
    """ "text", "image", "audio" or "video", by the type or else by the keys."""
    stated = given.get("type")
    keyed = [kind for kind in KINDS if any(key in given for key in (kind, f"{kind}_url", f"input_{kind}"))]
    if stated is not None and not (isinstance(stated, str) and stated in _TYPES):
        raise InputError(f"{where} has the type {stated!r}; accepted are text, {', '.join(KINDS)}, and OpenAI's names.")
    kind = None if stated is None else _TYPES[stated]
    if kind is None and keyed:
        kind = keyed[0]
        if "text" in given:
            raise InputError(f"{where} holds a text and a {kind} without a type; make two items of them.")
    if kind is None and "text" in given:
        kind = "text"
    if kind in (None, "file"):
        kind = kind_of_file(given)
        if kind is None:
            raise InputError(
                f"{where} has no type, and its keys ({', '.join(map(str, given))}) do not tell; add 'type': one of text, "
                f"{', '.join(KINDS)}."
            )
    if [other for other in keyed if other != kind]:
        raise InputError(f"{where} is of type {kind} and names {' and '.join(keyed)}; make one item of each.")
    if kind != "text" and "text" in given:
        warnings.warn(f"{where}: the text of an item of type {kind} is ignored; make an item of it.", stacklevel=2)
    return kind


def _text(text: Any, where: str) -> str:
    if isinstance(text, str):
        return text
    if not is_given(text):
        raise InputError(
            f"{where} is of type text and holds no text; give {{'type': 'text', 'text': ...}}, or leave it out."
        )
    if not isinstance(text, (int, float)):
        raise InputError(f"{where}: text is a {type(text).__name__}; expected a text.")
    return str(text)


# What names or wraps a medium: neither options nor mistakes. `detail` is how many tokens OpenAI spends.
_KNOWN = frozenset(
    ("type", "text", "format", "detail", "filename", "mime_type", "media_type", "mimeType", "source_type", "alt_text")
    + ("sampling_rate", "sample_rate", "cache_control", "id", *SOURCE_KEYS)
    + tuple(spelling for spelling, kind in _TYPES.items() if kind in KINDS)
)


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    """A dict, or the fields of a pydantic model, a dataclass or another object that has a role and content."""
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "role") and hasattr(value, "content"):
        return {name: getattr(value, name) for name in ("role", "content")}
    return None


def _is_nothing(item: Any) -> bool:
    """Whether an item holds nothing at all: a row of a table's unused columns."""
    mapping = _as_mapping(item)
    return not is_given(item if mapping is None else mapping)


def _listed(value: Any) -> Any:
    """Rows of a data frame hold lists as arrays of objects, those of Arrow as scalars of its own."""
    value = value.as_py() if hasattr(value, "as_py") else value
    return value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value


def _is_data(content: Any) -> bool:
    """Whether a tool answered with values, rather than with texts or items."""
    if isinstance(content, (list, tuple)):
        return any(_is_data(part) for part in content)
    return isinstance(content, (int, float)) or (isinstance(content, Mapping) and "type" not in content)


def _kind_of(value: Any) -> str:
    empty = isinstance(value, (list, tuple, str)) and not value
    return f"an empty {type(value).__name__}" if empty else f"a {type(value).__name__}"


def is_given(value: Any) -> bool:
    """Whether a key of an item counts: tables fill unused ones with None, NaN, an empty text or list, or a dict of those."""
    if isinstance(value, Mapping):
        return any(map(is_given, value.values()))
    if isinstance(value, (float, np.floating)):
        return not np.isnan(value)
    if isinstance(value, (str, list, tuple)):
        return len(value) > 0
    return value is not None and type(value).__name__ not in ("NAType", "NaTType")  # pandas'


def unwrapped(value: Any, name: str) -> Any:
    """A path, address, bytes, array, `(array, rate)` or picture out of a dict or a decoder; anything else as it is.

    Known are dicts of datasets (`{"array", "sampling_rate"}`, `{"bytes", "path"}`), of OpenAI and DashScope (`{"url"}`,
    `{"data", "format"}`, `{"file_data"}`), of Gradio (`{"path", "url", "mime_type"}`), and torchcodec's audio decoders.

    Raises:
        MediaError: a dict that names no medium.
    """
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        return to_array(samples.data), int(samples.sample_rate)
    if not isinstance(value, Mapping):
        return value
    given = {key: item for key, item in value.items() if is_given(item)}
    for key in (*_ARRAY, *_BYTES, *_TEXT, *_LOCATIONS, *_WRAPPERS):
        if key not in given:
            continue
        inner = given[key]
        if key in _ARRAY:
            rates = [given[rate] for rate in _RATES if rate in given]
            return (np.asarray(inner), rates[0]) if rates else np.asarray(inner)
        if key in _TEXT and isinstance(inner, str) and "://" not in inner and inner[:5] != "data:":
            return decode_base64(inner, name)
        return unwrapped(inner, name)
    hint = "; files kept by a service (file_id) cannot be reached, give the file itself" if "file_id" in given else ""
    raise MediaError(f"{name} is a dict with {', '.join(map(str, value)) or 'no keys'}; expected {DICT_ACCEPTED}{hint}.")


def kind_of_file(item: Mapping[str, Any]) -> str | None:
    """ "image", "audio" or "video" by a file dict's media type, data: URI or name; None when they leave it open."""
    file = item.get("file")
    inner = file if isinstance(file, Mapping) else item
    texts = [str(inner[key]) for key in ("mime_type", "media_type", "mimeType") if is_given(inner.get(key))]
    for key in ("file_data", "data", "filename", "orig_name", "name", "path", "file_path", "url", "uri", "file_url", "file"):
        value = inner.get(key)
        if isinstance(value, (str, PurePath)) and value:
            texts.append(media_type(str(value)))
    kinds = [text.split("/")[0] for text in texts if text]
    return kinds[0] if kinds and kinds[0] in ("image", "audio", "video") else None


def media_type(text: str) -> str:
    """The media type of a data: URI, or of a name by its ending, perhaps only "audio", "image" or "video"; "" where it says nothing."""
    if text[:5] == "data:":
        return text[5:].split(";")[0].split(",")[0]
    ending = PurePath(text.split("?")[0]).suffix.lower()
    return _MEDIA_TYPES.get(ending) or mimetypes.guess_type(f"name{ending}")[0] or ""


def render(
    batch: Sequence[Sequence[Message]],
    render_template: Callable[[str, int, Mapping[str, Any]], str],
    template: str,
    variables: Mapping[str, Any],
    continue_final_message: bool = False,
) -> list[str]:
    """Prompts of all conversations.

    Args:
        render_template: see `chat.render_template`.
        template: Jinja text.
        variables: see `chat.template_variables`.
        continue_final_message: end the prompt where the text of the last message ends.

    Raises:
        InputError: the template refuses the conversation or cannot be parsed.
    """
    return [_render_one(messages, render_template, template, variables, continue_final_message) for messages in batch]


def _render_one(
    messages: Sequence[Message],
    render_template: Callable[[str, int, Mapping[str, Any]], str],
    template: str,
    variables: Mapping[str, Any],
    open_end: bool,
) -> str:
    turns = [plain(message.for_template()) for message in messages]
    size = sum(len(text) for message in messages for text in message.texts)
    if open_end:
        _mark_end(turns[-1])
    try:
        text = render_template(template, size, {"messages": turns, **variables})
    except Exception as error:  # whatever a program can raise: 1/0, an endless recursion, ...
        reason = str(error) or type(error).__name__
        raise InputError(f"The chat template cannot render this conversation: {reason}") from error
    if not open_end:
        return text
    end = text.rfind(_END.strip())
    if end < 0:
        raise InputError("continue_final_message: the chat template leaves out the text of the last message.")
    intact = text[end : end + len(_END)] == _END  # some templates strip the texts
    return text[:end] if intact else text[:end].rstrip()


def _mark_end(message: dict[str, Any]) -> None:
    """Put a mark behind the text of the last message, where the prompt is to end."""
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + _END
        return
    texts = [item for item in content if item["type"] == "text"]
    if not texts:
        raise InputError("continue_final_message: the last message holds no text that could be continued.")
    texts[-1]["text"] += _END


def plain(value: Any) -> Any:
    """What a template may see: texts, numbers, lists and dicts; no objects, whose methods could do anything."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # of a class of its own, such as an enum's
            return getattr(kind, "__str__" if kind is str else f"__{kind.__name__}__")(value)
    return f"<{type(value).__name__}>"


def read_values(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(position in words, value) of each JSON value in a file: on a line each, or over several. Of a list of conversations each one
    is a value. Raises `InputError` for invalid JSON.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    decoder, line, at = json.JSONDecoder(), 1, 0
    while match := _NOT_BLANK.search(text, at):
        begin = match.start()
        line += text.count("\n", at, begin)
        where = f"{path}, line {line}"
        try:
            value, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        line += text.count("\n", begin, at)
        if isinstance(value, list) and not any(isinstance(item, dict) and "role" in item for item in value):
            yield from ((f"{where}, item {number}", item) for number, item in enumerate(value, 1))
        else:
            yield where, value


def spoken_turn(processor: Any, text: str, instructions: str | None = None) -> dict[str, Any]:
    """Ids and mask int64 `[1, T]` of a conversation whose assistant turn is the text, for `model.say` and `engine.add(given=True)`.

    Names of special tokens in the text are spoken as they are written. instructions: how it is to be spoken; they become part of the
    user's turn, which the talker reads.
    """
    request = f"{REQUEST} {instructions.strip()}" if instructions and instructions.strip() else REQUEST
    message = {"role": "user", "content": [{"type": "text", "text": request}]}
    ids = processor.apply_chat_template([[message]], tokenize=True, return_dict=True, add_generation_prompt=True)[
        "input_ids"
    ]
    tokens = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = np.concatenate([ids, np.array(tokens, np.int64)[None]], axis=1)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

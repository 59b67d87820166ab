"""What scripts for transformers know of a processor: the mapping of arrays that it returns, its settings as JSON, and what `generate`
returned as texts, tool calls and sounds.
"""

from __future__ import annotations

import ast
import json
import re
from collections import UserDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ms_omni.arrays import HostArray, to_array
from ms_omni.errors import InputError

if TYPE_CHECKING:
    from ms_omni.input.vision import ImageProcessor, VideoProcessor

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(rf"{_OPEN}(.*?)({_CLOSE}|(?={_OPEN})|\Z)", re.DOTALL)
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_MISSING_ENDS = ("}", "}}", "]}", "]}}", "]")


class ModelInputs(UserDict):
    """Model inputs by name, as keys and as attributes; `model.generate(**inputs)` takes them as they are."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(f"The model inputs have no {name!r}; they have {', '.join(self.__dict__.get('data', ()))}.")
        return self.data[name]

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Cast the floating-point arrays when a dtype is among the arguments, and return the inputs.

        Devices and `non_blocking` have no effect: the model takes arrays from the host, and casts them itself as well.
        """
        targets = [arg for arg in (*args, kwargs.get("dtype")) if _is_float_type(arg)]
        for name, value in self.data.items() if targets else ():
            if _is_float_type(getattr(value, "dtype", None)) and hasattr(value, "to"):
                self.data[name] = value.to(targets[0])
        return self

    def convert_to_tensors(self, tensor_type: Any = None, **_: Any) -> ModelInputs:
        """The same inputs in the form that `return_tensors` names.

        Args:
            tensor_type: None or "pt": numpy arrays that also answer to the methods which scripts for PyTorch call
                (`HostArray`); "np": plain numpy arrays; "ms": MindSpore tensors.

        Raises:
            InputError: any other framework.
        """
        kind = getattr(tensor_type, "value", tensor_type)
        if kind in (None, "pt"):
            convert = HostArray.of
        elif kind == "np":
            convert = np.asarray
        elif kind == "ms":
            import mindspore

            convert = mindspore.Tensor
        else:
            raise InputError(
                f"return_tensors is {kind!r}; expected None, 'np', 'ms' for MindSpore tensors, or 'pt' for arrays that can do "
                "what scripts for PyTorch ask of tensors."
            )
        return ModelInputs(
            {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in self.data.items()}
        )


def _is_float_type(dtype: Any) -> bool:
    """Whether this names a floating-point type of numpy, MindSpore or PyTorch ("torch.bfloat16", `Float16`)."""
    return dtype is not None and "float" in str(getattr(dtype, "__name__", dtype)).lower()


class ProcessorInterface:
    """What scripts for transformers ask of a processor beside calling it: its parts, settings as JSON, and answers as texts."""

    attributes = ("image_processor", "video_processor", "feature_extractor", "tokenizer")
    image_processor: ImageProcessor
    video_processor: VideoProcessor
    feature_extractor: Any
    tokenizer: Any

    @property
    def model_input_names(self) -> list[str]:
        """Names that the result may hold."""
        return [
            *("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"),
            *("video_second_per_grid", "input_features", "feature_attention_mask"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The settings of all parts but the tokenizer, as transformers' processors give them."""
        parts = {name: getattr(self, name).to_dict() for name in self.attributes if name != "tokenizer"}
        return {"processor_class": type(self).__name__, **parts}

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=list) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n- tokenizer: {self.tokenizer!r}\n{self.to_json_string()}"

    @property
    def max_pixels(self) -> int:
        """Largest area of a resized picture; setting it sets that of video frames too, and brings larger min_pixels down."""
        return self.image_processor.max_pixels

    @max_pixels.setter
    def max_pixels(self, value: int) -> None:
        for part in (self.image_processor, self.video_processor):
            part.max_pixels, part.min_pixels = value, min(part.min_pixels, value)

    @property
    def min_pixels(self) -> int:
        """Smallest area of a resized picture; setting it sets that of video frames as well."""
        return self.image_processor.min_pixels

    @min_pixels.setter
    def min_pixels(self, value: int) -> None:
        self.image_processor.min_pixels = self.video_processor.min_pixels = value

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """Texts of what `generate` returned, or of token ids `[B, T]` (array, tensor, lists).

        Raises:
            InputError: no token ids.
        """
        return self.tokenizer.batch_decode(token_rows(ids), skip_special_tokens=skip_special_tokens, **kwargs)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str | list[str]:
        """Text of the token ids `[T]` of one sequence; a list of texts of ids `[B, T]` or of what `generate` returned."""
        if isinstance(ids, np.ndarray) and ids.ndim == 1:
            ids = ids.tolist()  # `generate(...)[0]`, which has the attributes of the whole answer too
        if isinstance(ids, (int, np.integer)) or np.ndim(_first_of(ids)) == 0:
            return self.batch_decode(ids, skip_special_tokens, **kwargs)[0]
        return self.batch_decode(ids, skip_special_tokens, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Texts of what `generate` returned, be it ids or `(ids, audio)`."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_multimodal_output(
        self, generated_outputs: Any, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs: Any
    ) -> list[Any]:
        """Texts (generation_mode None or "text"), or waves float32 `[samples]` ("audio"), of what `generate` returned.

        Raises:
            InputError: another mode, or no sound to return.
        """
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(generated_outputs, skip_special_tokens, **kwargs)
        if generation_mode == "audio":
            return sounds_of(generated_outputs)
        raise InputError(f"generation_mode is {generation_mode!r}; expected None, 'text' or 'audio'.")


def token_rows(generated: Any) -> list[list[int]]:
    """Rows of token ids out of ids `[T]` or `[B, T]` (array, tensor, lists of either), `(ids, audio)` or an output object.

    Raises:
        InputError: anything else.
    """
    ids = getattr(generated, "sequences", None)
    ids = generated if ids is None else ids
    if is_pair(ids):
        ids = ids[0]
        ids = getattr(ids, "sequences", ids)
    array = to_array(ids)
    if array is None and isinstance(ids, (list, tuple)):
        arrays = [to_array(row) for row in ids]
        rows = [row if array is None else array.tolist() for row, array in zip(ids, arrays)]
        if all(isinstance(row, (int, np.integer)) for row in rows):
            rows = [rows]
        elif len(rows) == 1 and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], list):
            rows = rows[0]  # [ids[B, T]]
    elif array is not None and array.ndim <= 2 and array.dtype.kind in "iu":
        rows = np.atleast_2d(array).tolist()
    elif isinstance(ids, (int, np.integer)):
        rows = [[int(ids)]]
    else:
        given = f"an array of shape {list(array.shape)} and type {array.dtype}" if array is not None else type(ids).__name__
        raise InputError(f"Token ids are expected as [T] or [B, T], or what generate returned; got {given}.")
    if not all(
        isinstance(row, (list, tuple)) and all(isinstance(token, (int, np.integer)) for token in row) for row in rows
    ):
        raise InputError("Token ids are expected as [T] or [B, T], or what generate returned; got a list of something else.")
    return [[int(token) for token in row] for row in rows]


def is_pair(generated: Any) -> bool:
    """Whether this is generate's `(ids, audio)`: two rows of ids are no pair."""
    if not isinstance(generated, (tuple, list)) or len(generated) != 2:
        return False
    if generated[1] is None:
        return True
    sound = generated[1][0] if isinstance(generated[1], (list, tuple)) and generated[1] else generated[1]
    array = to_array(sound)
    return array is not None and array.dtype.kind == "f"


def sounds_of(generated: Any) -> list[np.ndarray]:
    """The waves of `(ids, audio)`: one float32 `[samples]` for each row.

    Raises:
        InputError: there is no sound.
    """
    if not is_pair(generated) or generated[1] is None:
        raise InputError("There is no sound: expected what generate(..., return_audio=True) returned, (ids, audio).")
    audio: Any = generated[1]
    return [np.ravel(np.asarray(to_array(wave))) for wave in (audio if isinstance(audio, (list, tuple)) else [audio])]


def _first_of(ids: Any) -> Any:
    """The first entry of what holds token ids: a number where it is one sequence."""
    ids = getattr(ids, "sequences", ids)
    return ids[0] if len(ids) else 0


def parse_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Separate the tool calls of an answer from its text.

    Small damage is mended: a code fence, single quotes, something behind the call, a brace that is missing before
    `</tool_call>`, arguments that are JSON within a text. A call that the token limit cut off is not guessed at.

    Args:
        text: the decoded answer; `<tool_call>` is no special token, so `skip_special_tokens=True` keeps it.

    Returns:
        the text without its calls, and the calls in order: `{"name": str, "arguments": dict}`. Blocks that hold no call stay
        in the text as they are.
    """
    calls: list[dict[str, Any]] = []

    def take(block: re.Match[str]) -> str:
        parsed = _calls(block[1], closed=block[2] == _CLOSE)
        calls.extend(parsed or [])
        return "" if parsed else block[0]

    rest = _BLOCK.sub(take, text)
    return (rest.strip() if calls else text), calls


def _calls(body: str, closed: bool) -> list[dict[str, Any]] | None:
    """The calls in one block; None when it does not hold any."""
    body = _FENCE.sub("", _FENCE.sub("", body.replace("<|im_end|>", "").strip()))
    for value in _readings(body, closed):
        calls = [_call(entry) for entry in (value if isinstance(value, list) else [value])]
        known = [call for call in calls if call is not None]
        if known and len(known) == len(calls):
            return known
    return None


def _readings(body: str, closed: bool) -> Iterator[Any]:
    """What the block may mean, the most likely first."""
    decoder = json.JSONDecoder(strict=False)  # line feeds within texts are written as they are
    for ending in ("", *_MISSING_ENDS) if closed else ("",):
        try:
            yield decoder.raw_decode(body + ending)[0]
        except ValueError:
            pass
    try:
        yield ast.literal_eval(body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass


def _call(value: Any) -> dict[str, Any] | None:
    """A call under OpenAI's or Qwen's names, as a name and a dict; None when it is none."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = next((value[key] for key in ("arguments", "parameters") if value.get(key) is not None), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
        except ValueError:
            return None
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None

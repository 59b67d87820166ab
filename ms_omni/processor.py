"""Conversations to model inputs: the reference's `Qwen3OmniMoeProcessor`, in numpy, without PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.media.conversation import as_batch, collect_media, media_parts
from ms_omni.media.options import SamplingOptions, number
from ms_omni.media.sources import to_array
from ms_omni.processing.arguments import CallOptions, argument_names, call_options, fps_per_video
from ms_omni.processing.files import (
    PAD_TOKEN,
    checked_folder,
    choose_template,
    import_transformers,
    load_chat_template,
    load_tokenizer,
    save,
    special_tokens,
)
from ms_omni.processing.inputs import ModelInputs, pad_left
from ms_omni.processing.mel import as_audio_list, audio_token_count, encode_audio
from ms_omni.processing.prompt import MediaCounts, count_placeholders, expand_placeholders, videos_with_sound
from ms_omni.processing.settings import ProcessorSettings, read_settings
from ms_omni.processing.vision import as_clips, as_image_list, as_video_list, encode_clips, encode_images, size_rule

UNKNOWN_FPS = 1.0  # what the reference assumes for frames whose rate nobody states
_SAMPLING_KEYS = ("fps", "nframes", "num_frames", "min_frames", "max_frames")


class Qwen3OmniMoeProcessor:
    """Turns text and media into what the model reads, and token ids back into text.

    Attributes:
        tokenizer: transformers' tokenizer.
        feature_extractor: transformers' `WhisperFeatureExtractor`.
        image_processor, video_processor: the `VisionSettings` of pictures and of video frames.
        chat_template: Jinja text, or several by name.
        image_token, audio_token, video_token, ...: the special tokens' texts; image_token_id, ...: the placeholders'
        ids.
    """

    def __init__(
        self, tokenizer: Any, settings: ProcessorSettings, chat_template: str | dict[str, str] | None = None
    ) -> None:
        """Usually called through `from_pretrained`.

        Raises:
            CheckpointError: the tokenizer lacks one of the special tokens.
        """
        self.tokenizer = tokenizer
        self.settings = settings
        self.image_processor, self.video_processor = settings.image, settings.video
        self.chat_template = chat_template
        self.feature_extractor = import_transformers().WhisperFeatureExtractor(**settings.audio)
        self.special_tokens = special_tokens(tokenizer)
        for name, text in vars(self.special_tokens).items():
            setattr(self, name, text)
        self.image_token_id, self.audio_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.special_tokens.image_token, self.special_tokens.audio_token, self.special_tokens.video_token]
        )
        self.pad_token_id = tokenizer.convert_tokens_to_ids(PAD_TOKEN)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> Qwen3OmniMoeProcessor:
        """Load from a checkpoint folder, in the published layout or in that of transformers 5.x.

        Args:
            folder: holds tokenizer, chat template and preprocessor settings; nothing is downloaded.
            min_pixels, max_pixels: area of a resized picture, and of a video frame, instead of the settings' own:
                fewer pixels make fewer tokens.

        Raises:
            CheckpointError: no such folder, or missing or damaged files in it.
            InputError: limits that cross.
        """
        path = checked_folder(folder)
        settings = read_settings(path)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        settings = replace(
            settings,
            image=settings.image.changed(limits, "from_pretrained"),
            video=settings.video.changed(limits, "from_pretrained"),
        )
        tokenizer = load_tokenizer(path)
        return cls(tokenizer, settings, load_chat_template(path, tokenizer))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write tokenizer, chat template and settings; transformers 4.57 and 5.x can read them too."""
        save(Path(folder).expanduser(), self.tokenizer, self.chat_template, self.settings)

    @property
    def model_input_names(self) -> list[str]:
        """Names that the result may hold."""
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
            "video_second_per_grid",
            "input_features",
            "feature_attention_mask",
        ]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> ModelInputs:
        """Model inputs of texts that hold one placeholder for each picture, sound and video.

        Args:
            text: a text, or a batch of them.
            images: pictures (PIL, arrays, files), in the order of the placeholders over the whole batch.
            videos: videos as frames (`process_mm_info`'s, arrays, tensors, lists of pictures) or files.
            audio: sounds at 16 kHz (or files); with `use_audio_in_video` the sound tracks among them, in order.
            **kwargs: as in the reference, by themselves or in text_kwargs, images_kwargs, videos_kwargs, audio_kwargs:
                fps (the frames per second of `videos`, one number or one for each), use_audio_in_video (or
                load_audio_from_video), audio_from_video_indices, min_pixels, max_pixels, size, padding, max_length,
                return_tensors (None or "np": numpy; "ms": MindSpore), ...; see `processing.arguments`.

        Returns:
            input_ids, attention_mask int64 `[B, T]`, padded on the left with <|endoftext|>; with pictures pixel_values
            float32 `[N, C*t*p*p]` and image_grid_thw int64 `[n, 3]`; with videos pixel_values_videos, video_grid_thw
            and video_second_per_grid float64 `[n]`; with sounds input_features float32 `[n, mel, frames]` and
            feature_attention_mask int32 `[n, frames]`.

        Raises:
            InputError: arguments that do not fit together; MediaError: media that cannot be used.
        """
        options = call_options(kwargs)
        texts = _texts(text)
        clips = []
        if videos is not None:
            video_list = as_video_list(videos)
            clips = as_clips(video_list, fps_per_video(options.fps, len(video_list)))
        rate = options.audio.get("sampling_rate", self.feature_extractor.sampling_rate)
        if rate != self.feature_extractor.sampling_rate:
            raise InputError(
                f"sampling_rate is {rate!r}; sounds are expected at "
                f"{self.feature_extractor.sampling_rate} Hz. Give (array, sampling_rate) for each sound "
                "to have it resampled."
            )
        sounds = [] if audio is None else as_audio_list(audio, rate)
        pictures = [] if images is None else as_image_list(images)
        return self._encode(texts, pictures, clips, sounds, options)

    def _encode(
        self, texts: list[str], images: list[Any], clips: list[Any], sounds: list[np.ndarray], options: CallOptions
    ) -> ModelInputs:
        """Features of all media, the expanded texts' ids, and everything in one mapping."""
        has_sound = [False] * len(clips)
        if options.use_audio_in_video:
            has_sound = videos_with_sound(
                [clip.has_audio for clip in clips],
                len(sounds),
                count_placeholders(texts, self.special_tokens.audio_token),
                options.audio_from_video_indices,
            )
        media: dict[str, np.ndarray] = {}
        image_grids, video_grids = np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64)
        seconds, audio_tokens = np.zeros(0), np.zeros(0, np.int64)
        if images:
            media["pixel_values"], image_grids = encode_images(
                images, self.image_processor.changed(options.vision["image"], "images_kwargs")
            )
            media["image_grid_thw"] = image_grids
        if clips:
            media["pixel_values_videos"], video_grids = encode_clips(
                clips, self.video_processor.changed(options.vision["video"], "videos_kwargs")
            )
            seconds = self._seconds_per_grid(clips)
            media |= {"video_grid_thw": video_grids, "video_second_per_grid": seconds}
        if sounds:
            media["input_features"], media["feature_attention_mask"] = encode_audio(sounds, self.feature_extractor)
            audio_tokens = audio_token_count(media["feature_attention_mask"].sum(-1))
        expanded = expand_placeholders(
            texts,
            self.special_tokens,
            MediaCounts(
                (image_grids.prod(-1) // self.image_processor.merge_size**2).tolist(),
                audio_tokens.tolist(),
                video_grids,
                seconds.tolist(),
                has_sound,
                self.video_processor.merge_size,
                options.position_id_per_seconds,
            ),
        )
        ids, mask = self._tokenize(expanded, options.text)
        inputs = ModelInputs({"input_ids": ids, "attention_mask": mask, **media})
        return inputs.convert_to_tensors(options.return_tensors)

    def _seconds_per_grid(self, clips: list[Any]) -> np.ndarray:
        """Seconds between two time steps of each video: float64 `[n]`."""
        if any(clip.sample_fps is None for clip in clips):
            warnings.warn(
                f"The rate of the frames is not known: taken as {UNKNOWN_FPS:g} per second, as the reference "
                "does. Pass fps= (process_mm_info returns it with return_video_kwargs=True).",
                stacklevel=4,
            )
        rates = np.array([clip.sample_fps or UNKNOWN_FPS for clip in clips], np.float64)
        return self.video_processor.temporal_patch_size / rates

    def _tokenize(self, texts: list[str], options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask `[B, T]` int64.

        Raises:
            InputError: truncation would cut media tokens off.
        """
        truncation, max_length = options.get("truncation", False), options.get("max_length")
        rows = self.tokenizer(
            texts,
            add_special_tokens=options.get("add_special_tokens", True),
            padding=False,
            truncation=truncation,
            max_length=max_length if truncation else None,
        )["input_ids"]
        rows = [list(row) for row in rows]
        if truncation:
            tokens = self.special_tokens
            for token in (tokens.image_token, tokens.audio_token, tokens.video_token):
                token_id = self.tokenizer.convert_tokens_to_ids(token)
                if [row.count(token_id) for row in rows] != [text.count(token) for text in texts]:
                    raise InputError(
                        f"truncation to {max_length} tokens cuts off some of the media's {token} tokens. "
                        "Raise max_length or turn truncation off."
                    )
        if not all(rows):
            raise InputError("A text is empty: it has no tokens.")
        return pad_left(
            rows,
            self.pad_token_id,
            padding=options.get("padding", True),
            side=options.get("padding_side", "left"),
            max_length=max_length,
            multiple_of=options.get("pad_to_multiple_of"),
        )

    def apply_chat_template(
        self,
        conversations: Any,
        chat_template: str | None = None,
        *,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        use_audio_in_video: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render conversations as prompts and, with `tokenize`, load their media and make model inputs.

        Args:
            conversations: a list of messages, or a list of those. Content is a text or a list of items, such as
                `{"type": "image", "image": "cat.jpg"}`; see `ms_omni.media.conversation`.
            chat_template: a template's text or name, instead of the checkpoint's.
            tools, documents, add_generation_prompt, continue_final_message: passed to the template.
            tokenize: False returns the prompt text (a list of texts for several conversations).
            return_dict: with `tokenize`, return all model inputs rather than the ids alone.
            return_tensors: as in `__call__`.
            use_audio_in_video, load_audio_from_video: the same: hear the sound tracks of videos that have one.
            processor_kwargs: arguments for `__call__`, and fps, nframes (num_frames), min_frames, max_frames for
                sampling videos that do not say themselves; they may also stand among `kwargs`.
            **kwargs: whatever is none of those goes to the template as a variable.

        Raises:
            InputError: a malformed conversation; MediaError: an item that cannot be read.
        """
        template = choose_template(self.chat_template, chat_template)
        batch, several = as_batch(conversations)
        call_kwargs, sampling, variables = _split_kwargs({**kwargs, **(processor_kwargs or {})})
        prompts = self._render(
            batch,
            template,
            variables,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        if not tokenize:
            return prompts if several else prompts[0]
        call_kwargs.update(return_tensors=return_tensors or call_kwargs.get("return_tensors"))
        options = call_options(
            {
                **call_kwargs,
                "use_audio_in_video": use_audio_in_video
                or load_audio_from_video
                or call_kwargs.get("use_audio_in_video", False),
            }
        )
        video_settings = self.video_processor.changed(options.vision["video"], "videos_kwargs")
        media = collect_media(
            batch,
            options.use_audio_in_video,
            sampling=sampling,
            size_rule=size_rule(video_settings) if video_settings.do_resize else None,
        )
        inputs = self._encode(prompts, media.images, media.videos, media.audios, options)
        return inputs if return_dict else inputs["input_ids"]

    def _render(self, batch: list[Any], template: str, variables: Mapping[str, Any], **arguments: Any) -> list[str]:
        """Prompts of all conversations.

        Raises:
            InputError: the template refuses the conversation or cannot be parsed.
        """
        import jinja2

        plain = [_for_template(conversation) for conversation in batch]
        try:
            return self.tokenizer.apply_chat_template(
                plain, chat_template=template, tokenize=False, **arguments, **variables
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise InputError(f"The chat template cannot render this conversation: {error}") from error

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """Texts of token ids `[B, T]` (array, tensor, lists, or the result of `generate` with its `sequences`)."""
        rows = _id_rows(ids)
        return self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **kwargs)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """Text of the token ids `[T]` of one sequence."""
        array = to_array(ids)
        row = ids if array is None else array.tolist()
        return self.tokenizer.decode(row, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Texts of what `generate` returned, be it ids or `(ids, audio)`."""
        ids = generated_outputs[0] if isinstance(generated_outputs, tuple) else generated_outputs
        return self.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)


def _texts(text: Any) -> list[str]:
    """The texts of a batch.

    Raises:
        InputError: None, or not texts.
    """
    if isinstance(text, str):
        return [text]
    if not isinstance(text, (list, tuple)) or not text or not all(isinstance(item, str) for item in text):
        raise InputError(
            "text must be a text or a non-empty list of texts (apply_chat_template makes them of "
            f"conversations); got {'None' if text is None else type(text).__name__}."
        )
    return list(text)


def _split_kwargs(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], SamplingOptions, dict[str, Any]]:
    """Arguments of `__call__`, the sampling of videos, and what is left for the template."""
    kwargs = dict(kwargs)
    videos = dict(kwargs.get("videos_kwargs") or {})
    sampling = {key: kwargs[key] if kwargs.get(key) is not None else videos.get(key) for key in _SAMPLING_KEYS}
    for key in _SAMPLING_KEYS:
        kwargs.pop(key, None)
        videos.pop(key, None)
    if "videos_kwargs" in kwargs:
        kwargs["videos_kwargs"] = {key: value for key, value in videos.items() if key != "do_sample_frames"}
    if kwargs.pop("do_sample_frames", True) is False or videos.get("do_sample_frames") is False:
        raise InputError(
            "do_sample_frames=False is for ready-made frames; to take more frames of a file, give fps or nframes."
        )
    where = "apply_chat_template"
    frames = number(sampling, "nframes", where, whole=True) or number(sampling, "num_frames", where, whole=True)
    options = SamplingOptions(
        number(sampling, "fps", where),
        frames,
        number(sampling, "min_frames", where, whole=True),
        number(sampling, "max_frames", where, whole=True),
    )
    if options.fps is not None and options.nframes is not None:
        raise InputError(f"{where}: give either fps or nframes, not both.")
    known = set(argument_names())
    call = {key: kwargs.pop(key) for key in list(kwargs) if key in known}
    return call, options, kwargs


def _for_template(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as chat templates expect it: media items have their plain type, and not the media itself."""
    kinds = {id(part.item): part.kind for part in media_parts(conversation)}

    def plain(item: Any) -> Any:
        kind = kinds.get(id(item))
        if kind is None:
            return item
        rest = {key: value for key, value in item.items() if key not in (f"{kind}_url", "path", "url")}
        return {**rest, "type": kind, kind: ""}

    messages = [{key: value for key, value in message.items() if value is not None} for message in conversation]
    for message in messages:
        content = message.get("content", "")
        message["content"] = [plain(item) for item in content] if isinstance(content, (list, tuple)) else content
    return messages


def _id_rows(ids: Any) -> list[list[int]]:
    ids = getattr(ids, "sequences", ids)
    array = to_array(ids)
    if array is not None:
        return np.atleast_2d(array).tolist()
    return [row if to_array(row) is None else to_array(row).tolist() for row in ids]

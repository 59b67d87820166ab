"""Conversations to model inputs: the reference's `Qwen3OmniMoeProcessor`, in numpy, without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.hub import resolve
from ms_omni.input.access import AccessPolicy, policy_scope
from ms_omni.input.arguments import (
    FRAME_KEYS,
    VISION_KEYS,
    CallOptions,
    call_options,
    check_flags,
    is_argument,
    known_only,
    load_audios,
    load_images,
    load_videos,
    media_arguments,
    sound_track_owners,
)
from ms_omni.input.chat import choose_template, render_template, template_variables
from ms_omni.input.files import (
    AUDIO_KEYS,
    ProcessorSettings,
    audio_settings,
    check_against_config,
    load_chat_template,
    load_tokenizer,
    read_settings,
    save,
    special_tokens,
)
from ms_omni.input.image import SizeRule
from ms_omni.input.interface import ModelInputs, ProcessorInterface
from ms_omni.input.load import load_items
from ms_omni.input.media import Media, SizeOptions
from ms_omni.input.messages import read_batch, render
from ms_omni.input.prompt import (
    PAD_TOKEN,
    MediaCounts,
    MultiModalData,
    audio_token_count,
    count_placeholders,
    count_tokens,
    expand_placeholders,
    text_batch,
    tokenize,
    videos_with_sound,
)
from ms_omni.input.sampling import file_sampling, seconds_per_grid
from ms_omni.input.vision import ImageProcessor, VideoProcessor, encode, size_rule
from ms_omni.load_arguments import PROCESSOR, TOKENIZER, sort_out


class Qwen3OmniMoeProcessor(ProcessorInterface):
    """Turns text and media into what the model reads, and token ids back into text.

    Attributes:
        image_processor, video_processor: settings of pictures and of video frames; can be set (`max_pixels`, `size`, ...) and
            called.
        feature_extractor: transformers' `WhisperFeatureExtractor`; can be called.
        tokenizer: transformers' tokenizer.
        chat_template: Jinja text, or several by name.
        image_token, audio_token, video_token, ...: the special tokens' texts; image_token_id, ...: the placeholders'
        ids.
    """

    name_or_path = ""

    def __init__(
        self,
        image_processor: Any = None,
        video_processor: Any = None,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        """Usually called through `from_pretrained`.

        Args:
            image_processor, video_processor: ours, settings, or transformers' (its settings are taken).
            feature_extractor: a mel extractor, or a dict of its settings.
            tokenizer: transformers' tokenizer of this family.
            chat_template: Jinja text, or several by name; by default the tokenizer's.

        Raises:
            InputError: one of the four is missing; CheckpointError: the tokenizer lacks one of the special tokens.
        """
        parts = dict(zip(self.attributes, (image_processor, video_processor, feature_extractor, tokenizer)))
        missing = [name for name, part in parts.items() if part is None]
        if missing:
            raise InputError(f"Qwen3OmniMoeProcessor needs {', '.join(missing)}; from_pretrained makes all from a folder.")
        from ms_omni.input.mel import mel_extractor  # imports transformers

        self.image_processor = ImageProcessor.from_settings(image_processor, "image_processor")
        self.video_processor = VideoProcessor.from_settings(video_processor, "video_processor")
        self.feature_extractor = mel_extractor(feature_extractor)
        self.tokenizer = tokenizer
        self.chat_template = chat_template if chat_template is not None else tokenizer.chat_template
        self.special_tokens = special_tokens(tokenizer)
        for name, text in vars(self.special_tokens).items():
            setattr(self, name, text)
        self.image_token_id, self.audio_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.special_tokens.image_token, self.special_tokens.audio_token, self.special_tokens.video_token]
        )
        self.pad_token_id = tokenizer.convert_tokens_to_ids(PAD_TOKEN)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Qwen3OmniMoeProcessor:
        """Load from a checkpoint, in the published layout or in that of transformers 5.x.

        Args:
            pretrained_model_name_or_path: a folder with tokenizer, chat template and preprocessor settings, or a model's
                name, looked up in the hubs' caches and else downloaded (see `hub.resolve`, whose arguments are taken).
            **kwargs: values instead of the files' own: min_pixels, max_pixels, size and the other settings of pictures and
                video frames, fps, num_frames and the others that choose frames, settings of the mel features, chat_template, padding_side, model_max_length and other arguments
                of a tokenizer. What has no effect here (use_fast, trust_remote_code, ...) is named in a warning.

        Raises:
            CheckpointError: no such folder or model, or missing or damaged files.
            InputError: an unknown argument, or values that do not fit together.
        """
        where, options = sort_out(kwargs, cls.__name__, PROCESSOR, (*VISION_KEYS, *AUDIO_KEYS, *FRAME_KEYS))
        options = {key: value for key, value in options.items() if value is not None}
        path = resolve(pretrained_model_name_or_path, weights=False, **where)
        settings = read_settings(path)
        vision = {key: options[key] for key in VISION_KEYS if key in options}
        sound = {key: options[key] for key in AUDIO_KEYS if key in options and key not in TOKENIZER}
        tokenizer = load_tokenizer(path, {key: options[key] for key in TOKENIZER if key in options})
        processor = cls(
            settings.image.changed(vision, "from_pretrained"),
            settings.video.changed(vision, "from_pretrained"),
            audio_settings({**settings.audio, **sound}, "from_pretrained: the audio settings"),
            tokenizer,
            options.get("chat_template") or load_chat_template(path, tokenizer),
        )
        for key in FRAME_KEYS:
            if key in options:
                setattr(processor.video_processor, key, options[key])
        check_against_config(path, tokenizer, processor.special_tokens, processor.settings)
        processor.name_or_path = str(pretrained_model_name_or_path)
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write tokenizer, chat template and settings; transformers 4.57 and 5.x can read them too.

        Raises:
            InputError: push_to_hub: nothing is uploaded.
        """
        if push_to_hub:
            raise InputError(
                "save_pretrained: push_to_hub is set, and nothing is uploaded here; upload the folder yourself."
            )
        known_only(kwargs, (), "save_pretrained")
        save(Path(save_directory).expanduser(), self.tokenizer, self.chat_template, self.settings)

    @property
    def settings(self) -> ProcessorSettings:
        """The preprocessor settings as they are now."""
        from ms_omni.input.mel import settings_of  # imports transformers

        return ProcessorSettings(self.image_processor, self.video_processor, settings_of(self.feature_extractor))

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        policy: AccessPolicy | None = None,
        **kwargs: Any,
    ) -> ModelInputs:
        """Model inputs of texts that hold one placeholder for each picture, sound and video.

        Args:
            text: a text, or a batch of them.
            images: pictures (PIL, arrays, files), in the order of the placeholders over the whole batch.
            videos: videos as frames (`process_mm_info`'s, arrays, tensors, lists of pictures) or files.
            audio: sounds at 16 kHz (or files); with `use_audio_in_video` the sound tracks among them, in order (those of video
                files are read where they are left out).
            policy: which hosts and files may be asked for media.
            **kwargs: as in the reference, on their own or in text_kwargs, images_kwargs, videos_kwargs, audio_kwargs,
                common_kwargs: fps, num_frames, do_sample_frames, video_metadata (see `input.arguments.load_videos`),
                use_audio_in_video (or load_audio_from_video), audio_from_video_indices, min_pixels, max_pixels, size,
                padding, max_length, return_tensors (see `ModelInputs.convert_to_tensors`), ...; see
                `input.arguments`. Media may have older names (`audios`).

        Returns:
            input_ids, attention_mask int64 `[B, T]`, padded on the left with <|endoftext|>; with pictures pixel_values
            float32 `[N, C*t*p*p]` and image_grid_thw int64 `[n, 3]`; with videos pixel_values_videos, video_grid_thw
            and video_second_per_grid float64 `[n]`; with sounds input_features float32 `[n, mel, frames]` and
            feature_attention_mask int32 `[n, frames]`.

        Raises:
            InputError: arguments that do not fit together; MediaError: media that cannot be used.
        """
        media = media_arguments({"text": text, "images": images, "videos": videos, "audio": audio}, kwargs)
        text, images, videos, audio = media.values()
        options = call_options(kwargs)
        texts = text_batch(text)
        rate = options.audio.get("sampling_rate", self.feature_extractor.sampling_rate)
        if rate != self.feature_extractor.sampling_rate:
            raise InputError(
                f"sampling_rate is {rate!r}; sounds are expected at "
                f"{self.feature_extractor.sampling_rate} Hz. Give (array, sampling_rate) for each sound "
                "to have it resampled."
            )
        rescaled = not self.image_processor.changed(options.vision("image"), "images_kwargs").do_rescale
        with policy_scope(policy):
            sounds = [] if audio is None else load_audios(audio)
            videos, owners = [] if videos is None else videos, ()
            if options.use_audio_in_video:
                owners = sound_track_owners(videos, len(sounds), options.audio_from_video_indices)
            clips, tracks = load_videos(videos, self.video_processor.sampling(options.video), owners)
            pictures = [] if images is None else load_images(images, rescaled=rescaled)
        if options.use_audio_in_video:
            if owners:
                separate = iter(sounds)
                sounds = [
                    next(separate) if owner is None else tracks[owner]
                    for owner in owners
                    if owner is None or owner in tracks
                ]
            uses_audio = videos_with_sound(
                [clip.has_audio for clip in clips],
                len(sounds),
                count_placeholders(texts, self.special_tokens.audio_token),
                options.audio_from_video_indices,
            )
            clips = [replace(clip, uses_audio=taken) for clip, taken in zip(clips, uses_audio)]
        return self._encode(texts, [*pictures, *clips, *sounds], options)

    def _encode(self, texts: list[str], given: Sequence[Media], options: CallOptions) -> ModelInputs:
        """Features of all media, the expanded texts' ids, and everything in one mapping."""
        images, clips, sounds = ([item for item in given if item.kind == kind] for kind in ("image", "video", "audio"))
        media: dict[str, Any] = {}
        image, video = self.image_processor, self.video_processor
        image_grids, video_grids = np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64)
        seconds, audio_tokens = np.zeros(0), np.zeros(0, np.int64)
        if images:
            image = image.changed(options.vision("image"), "images_kwargs")
            media["pixel_values"], image_grids = encode(images, image)
            media["image_grid_thw"] = image_grids
        if clips:
            video = video.changed(options.vision("video"), "videos_kwargs")
            media["pixel_values_videos"], video_grids = encode(clips, video)
            seconds = seconds_per_grid(clips, video.temporal_patch_size)
            media |= {"video_grid_thw": video_grids, "video_second_per_grid": seconds}
            if options.video.get("return_metadata"):
                media["video_metadata"] = [clip.metadata for clip in clips]
        if sounds:
            from ms_omni.input.mel import encode_audio  # imports transformers

            features, mask = encode_audio([sound.data for sound in sounds], self.feature_extractor, options.audio)
            media |= {"input_features": features, "feature_attention_mask": mask}
            audio_tokens = audio_token_count(mask.sum(-1))
        expanded = expand_placeholders(
            texts,
            self.special_tokens,
            MediaCounts(
                (image_grids.prod(-1) // image.merge_size**2).tolist(),
                audio_tokens.tolist(),
                video_grids,
                seconds.tolist(),
                [clip.uses_audio for clip in clips],
                video.merge_size,
                options.position_id_per_seconds,
            ),
        )
        inputs = ModelInputs({**tokenize(self.tokenizer, expanded, options.text, self.special_tokens), **media})
        return inputs.convert_to_tensors(options.return_tensors)

    def apply_chat_template(
        self,
        conversation: Any = None,
        chat_template: str | None = None,
        *,
        conversations: Any = None,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        use_audio_in_video: bool = False,
        load_audio_from_video: bool = False,
        policy: AccessPolicy | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render conversations as prompts and, with `tokenize`, load their media and make model inputs.

        Args:
            conversation: a list of messages, or a list of those (`conversations` is the same). Content is a text or a list of items, such as
                `{"type": "image", "image": "cat.jpg"}`; see `ms_omni.input.messages`.
            chat_template: a template's text or name, instead of the checkpoint's.
            tools: functions with annotations and a docstring, or JSON schemas; `ms_omni.parse_tool_calls` reads the calls.
            documents, add_generation_prompt, continue_final_message: passed to the template.
            tokenize: False returns the prompt text (a list of texts for several conversations).
            return_dict: with `tokenize`, return all model inputs rather than the ids alone.
            return_tensors: as in `__call__`.
            use_audio_in_video, load_audio_from_video: the same: use the sound tracks of videos that have one.
            policy: which hosts and files may be asked for media.
            processor_kwargs: arguments for `__call__`; they may also stand among `kwargs`. fps, nframes (num_frames),
                min_frames, max_frames and do_sample_frames=False (all frames) are for video files whose items do not say.
            **kwargs: all others go to the template as variables.

        Raises:
            InputError: a malformed conversation; MediaError: an item that cannot be read.
        """
        check_flags(
            "apply_chat_template",
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=tokenize,
            return_dict=return_dict,
            use_audio_in_video=use_audio_in_video,
            load_audio_from_video=load_audio_from_video,
        )
        if add_generation_prompt and continue_final_message:
            raise InputError("add_generation_prompt begins a new turn and continue_final_message none; give one of them.")
        batch, several = read_batch(conversation if conversations is None else conversations)
        given = {**kwargs, **(processor_kwargs or {})}
        template = choose_template(self.chat_template, chat_template, tools)
        variables = template_variables(
            self.tokenizer,
            template,
            {key: value for key, value in given.items() if not is_argument(key)},
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
        )
        prompts = render(batch, render_template, template, variables, continue_final_message)
        arguments = {key: value for key, value in given.items() if is_argument(key)}
        if use_audio_in_video or load_audio_from_video:
            arguments["use_audio_in_video"] = True
        options = call_options({**arguments, "return_tensors": return_tensors or arguments.get("return_tensors")})
        if options.audio_from_video_indices is not None:
            raise InputError(
                "apply_chat_template: audio_from_video_indices is for media given beside a text; in a conversation the items say "
                "which sound is whose. Leave it out."
            )
        if not tokenize:
            return prompts if several else prompts[0]
        with policy_scope(policy):
            media = load_items(
                batch,
                options.use_audio_in_video,
                sampling=file_sampling(self.video_processor.sampling(options.video), "apply_chat_template"),
                size_rule=self._frame_size(options),
                picture_rule=self._picture_size(options),
                video_metadata=options.video.get("video_metadata"),
            )
        inputs = self._encode(prompts, media, options)
        return inputs if return_dict else inputs["input_ids"]

    def _frame_size(self, options: CallOptions) -> SizeRule | None:
        """The size of the frames of video files."""
        settings = self.video_processor.changed(options.vision("video"), "videos_kwargs")
        return size_rule(settings) if settings.do_resize else None

    def _picture_size(self, options: CallOptions) -> SizeRule:
        """The size of pictures. Their options are checked only where there is a picture."""

        def rule(frames: int, height: int, width: int, sizes: SizeOptions, name: str) -> tuple[int, int]:
            settings = self.image_processor.changed(options.vision("image"), "images_kwargs")
            own = size_rule(settings, own_limits=True)
            return own(frames, height, width, sizes, name) if settings.do_resize else (height, width)

        return rule

    def _get_num_multimodal_tokens(
        self,
        image_sizes: Sequence[Sequence[int]] | None = None,
        video_sizes: Sequence[Sequence[int]] | None = None,
        audio_lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> MultiModalData:
        """How many placeholder tokens media of these sizes become.

        Args:
            image_sizes: (height, width) of each picture; video_sizes: (frames, height, width) of each video, in pixels.
            audio_lengths: samples of each sound, at 16 kHz.
            **kwargs: as in `__call__`.
        """
        return count_tokens(self, call_options(kwargs), image_sizes, video_sizes, audio_lengths)

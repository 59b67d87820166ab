"""The public model classes: the cells of `modeling`, put together, loaded from checkpoints, and made to generate."""

from contextlib import closing
from dataclasses import replace
from typing import Any

from .config import (
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeTalkerConfig,
    Qwen3OmniMoeThinkerConfig,
    read_config_json,
)
from .errors import InputError
from .pretrained import (
    Qwen3OmniMoeAudioEncoder,
    Qwen3OmniMoeCode2WavDecoderBlock,
    Qwen3OmniMoeCode2WavTransformerModel,
    Qwen3OmniMoePreTrainedModel,
    Qwen3OmniMoePreTrainedModelForConditionalGeneration,
    Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
    Qwen3OmniMoeTalkerModel,
    Qwen3OmniMoeThinkerTextModel,
    Qwen3OmniMoeVisionEncoder,
)

from mindspore import nn  # isort: skip  (pretrained explains a missing MindSpore first)

from .engine.engine import Engine, engine_of
from .engine.given_text import generate_codes
from .engine.stream import Stream, ended_streamer, feed_streamer, join_audio, split_events, text_result
from .generation.options import GenerationConfig
from .generation.request import arguments_of, parse_request, parse_text_request
from .modeling.code2wav import Code2Wav
from .modeling.steps import COMPILE_AFTER
from .modeling.talker import Talker
from .modeling.thinker import Thinker
from .outputs import without_speech as text_alone


class Qwen3OmniMoeThinkerForConditionalGeneration(Qwen3OmniMoePreTrainedModelForConditionalGeneration, Thinker):
    """The thinker alone: understands text, images, audio and video, answers in text.

    `thinker(**inputs)` is one forward pass (see `Thinker.construct`), `thinker.generate(**inputs)` writes.
    """

    config_class = Qwen3OmniMoeThinkerConfig
    checkpoint_prefix = "thinker."
    audio_encoder = Qwen3OmniMoeAudioEncoder
    vision_encoder = Qwen3OmniMoeVisionEncoder
    text_model = Qwen3OmniMoeThinkerTextModel
    compile_after, own_engine = COMPILE_AFTER, None

    def __init__(self, config: Any) -> None:
        super().__init__(Qwen3OmniMoeThinkerConfig.validated(config))
        self.generation_config = GenerationConfig()

    def prepare_inputs_for_generation(
        self,
        input_ids: Any = None,
        past_key_values: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        use_cache: bool = True,
        **inputs: Any,
    ) -> dict[str, Any]:
        """What the next forward pass of a loop of the caller's own takes.

        The first one: everything. Later ones: of input_ids `[B, T]`, the prompt and all tokens since, those that
        past_key_values has not seen, and no media any more. Raises `InputError` for a cache without ids.
        """
        prepared = {"past_key_values": past_key_values, "attention_mask": attention_mask, "use_cache": use_cache}
        if past_key_values is not None and past_key_values.length:
            if input_ids is None:
                raise InputError("past_key_values came without input_ids; pass those of the prompt and of all tokens since")
            return {**prepared, "input_ids": input_ids[:, past_key_values.length :]}
        first = {"inputs_embeds": inputs_embeds} if inputs_embeds is not None else {"input_ids": input_ids}
        return {**inputs, **prepared, **first}

    def generate(
        self,
        input_ids: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Prompt and new token ids int64 `[B, T + new]`; rows that ended earlier are padded.

        Arguments are the processor's outputs (or `inputs_embeds` `[B, T, D]`: the ids are then the new ones alone), the
        fields of `SamplingParams` (max_new_tokens, do_sample, temperature, top_k, ...), the options of `TextOptions`
        (stop_strings with tokenizer, stopping_criteria, logits_processor, num_return_sequences, max_time,
        past_key_values, ...), max_length and min_length (with the prompt), generation_config (of transformers, of ours, or
        a dict) and streamer. With return_dict_in_generate the result is a `GenerateOutput`; output_scores, output_logits
        and output_hidden_states fill it, and use_cache=True its past_key_values, from which a longer prompt can go on.
        Raises `InputError` before any work, for what is wrong, unknown or not to be had (beam search, attentions).
        """
        positional = {
            "input_ids": input_ids,
            "generation_config": generation_config,
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
        }
        with ended_streamer(kwargs) as streamer:
            request = parse_text_request(self, arguments_of(kwargs, **positional), whole=True)
            with closing(Stream(engine_of(self), request)) as stream:
                for _ in feed_streamer(stream, stream.prompt_ids, streamer):
                    pass
                return text_result(stream)


class SpeechPart(Qwen3OmniMoePreTrainedModel):
    """A part of a checkpoint that speaks."""

    @classmethod
    def _read_config(cls, folder):
        whole = "thinker_config" in read_config_json(folder)[0]
        return cls._given_config((Qwen3OmniMoeConfig if whole else cls.config_class).from_pretrained(folder))

    @classmethod
    def _given_config(cls, config):
        if getattr(config, "enable_audio_output", True) is False:
            raise InputError(f"the model has no talker (enable_audio_output is false), so it holds no {cls.__name__}")
        return super()._given_config(config)


class Qwen3OmniMoeTalkerForConditionalGeneration(SpeechPart, Talker):
    """The talker alone, loaded from a full checkpoint."""

    config_class = Qwen3OmniMoeTalkerConfig
    checkpoint_prefix = "talker."
    text_model = Qwen3OmniMoeTalkerModel
    predictor = Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration
    compile_after, own_engine = COMPILE_AFTER, None

    def __init__(self, config: Any) -> None:
        super().__init__(Qwen3OmniMoeTalkerConfig.validated(config))

    def generate(
        self,
        inputs_embeds: Any = None,
        trailing_text_hidden: Any = None,
        tts_pad_embed: Any = None,
        talker_input_ids: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Codes 0 int64 `[B, n]` of a text that is known, drawn until the end token; `model.generate` speaks while it writes.

        inputs_embeds `[B, S, D]` are the talker's rows of the prompt, trailing_text_hidden `[B, n, D]` the text rows behind the
        first one, tts_pad_embed `[B or 1, 1, D]` the row when they are used up, talker_input_ids `[B, S]` the thinker's ids
        for positions, with attention_mask (padded on the left) and grids. Further arguments are the fields of
        `SamplingParams`. With return_dict_in_generate and output_hidden_states `hidden_states[i][-1]` holds the codes `[B, Q]`
        of frame i - 1, as in the reference. Raises `InputError`.
        """
        kwargs["talker_input_ids"] = talker_input_ids
        return generate_codes(self, inputs_embeds, trailing_text_hidden, tts_pad_embed, kwargs)


class Qwen3OmniMoeCode2Wav(SpeechPart, Code2Wav):
    """The vocoder alone, loaded from a full checkpoint."""

    config_class = Qwen3OmniMoeCode2WavConfig
    checkpoint_prefix = "code2wav."
    main_input_name = "codes"
    transformer_model = Qwen3OmniMoeCode2WavTransformerModel
    decoder_block = Qwen3OmniMoeCode2WavDecoderBlock

    def __init__(self, config: Any) -> None:
        super().__init__(Qwen3OmniMoeCode2WavConfig.validated(config))


class Qwen3OmniMoeForConditionalGeneration(Qwen3OmniMoePreTrainedModel, nn.Cell):
    """The whole model: `thinker`, and with audio output `talker` and `code2wav`."""

    config_class = Qwen3OmniMoeConfig
    compile_after, own_engine = COMPILE_AFTER, None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config = Qwen3OmniMoeConfig.validated(config)
        self.folder: Any = None
        self.request: Any = None
        self.thinker = Qwen3OmniMoeThinkerForConditionalGeneration(config.thinker_config)
        if config.enable_audio_output:
            self.talker = Qwen3OmniMoeTalkerForConditionalGeneration(config.talker_config)
            self.code2wav = Qwen3OmniMoeCode2Wav(config.code2wav_config)

    @classmethod
    def _configuration(cls, folder, request):
        changes = dict(request.changes)
        speaks = changes.pop("enable_audio_output", None)
        config = super()._configuration(folder, replace(request, changes=changes))
        if speaks and not config.enable_audio_output:
            raise InputError(
                f"{request.name} has no talker (enable_audio_output is false in its config.json): it is a Thinking "
                "or Captioner checkpoint and answers in text only"
            )
        return without_speech(config) if speaks is False else config

    def _loaded(self, folder, request):
        super()._loaded(folder, request)
        self.folder, self.request = folder, request
        self.generation_config.load(eos_token_id=self.config.im_end_token_id)

    def construct(self, *_: Any, **__: Any) -> Any:
        """The reference has no forward pass of the whole model either. Raises `InputError`."""
        raise InputError(
            "the whole model has no forward pass: call model.thinker(...), model.talker(...) or model.code2wav(...), or let "
            "model.generate(...) answer"
        )

    def get_decoder(self) -> Any:
        return self.thinker.get_decoder()

    def get_input_embeddings(self) -> Any:
        return self.thinker.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.thinker.get_output_embeddings()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As the thinker's; the talker has no vocabulary of texts."""
        return self.thinker.resize_token_embeddings(*args, **kwargs)

    @property
    def has_talker(self) -> bool:
        """Whether the model can speak."""
        return "talker" in self._cells

    def enable_talker(self) -> None:
        """Loads talker and vocoder from the folder that the model came from. Raises `InputError` if it has none."""
        if self.has_talker:
            return
        if self.folder is None:
            raise InputError("this model was not loaded from a folder, so there is no talker to load")
        strategy = None if self.process_group is None else self.process_group.strategy
        words = ("config", "variant", "key_mapping", "state_dict", "quantize", "quantize_group", "quantize_embeddings")
        same = {word: getattr(self.request, word) for word in words}
        dtype = self.request.dtype if self.device == "CPU" else self.dtype  # a CPU computes in one, whatever was asked for
        kwargs = {**same, "dtype": dtype, "progress": False, "parallel": strategy}
        self.talker = Qwen3OmniMoeTalkerForConditionalGeneration.from_pretrained(self.folder, **kwargs)
        self.code2wav = Qwen3OmniMoeCode2Wav.from_pretrained(self.folder, **kwargs)
        self.config = self._configuration(self.folder, replace(self.request, changes={}))
        self.own_engine = None

    def disable_talker(self) -> None:
        """Frees talker and vocoder; the model then answers in text only."""
        if self.has_talker:
            del self.talker, self.code2wav
            self.own_engine = None
            self.config = without_speech(self.config)

    @property
    def generation_config(self) -> Any:
        """Defaults of the text: those of the thinker."""
        return self.thinker.generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        self.thinker.generation_config = config

    def generate(self, input_ids: Any = None, speaker: str | None = None, **kwargs: Any) -> Any:
        """Answers a prompt: `(text_ids, audio)`, or the text ids alone where there is no speech.

        text_ids: prompt and new ids int64 `[B, T + new]`, or a `GenerateOutput` with
        `thinker_return_dict_in_generate=True`. audio: float32 at 24 kHz, `[1, 1, samples]` for one conversation and a
        list of `[samples]` for a batch. Without speech (return_audio=False, generation_mode="text", no talker) scripts of
        transformers 4.57 unpack a pair and those of 5.x take ids: the value returned does both, see `outputs.py`.
        All arguments are those of `stream`, and beside them streamer, return_dict_in_generate, output_scores,
        output_logits, output_hidden_states.
        """
        with ended_streamer(kwargs) as streamer:
            request = parse_request(self, arguments_of(kwargs, input_ids=input_ids, speaker=speaker), whole=True)
            with closing(Stream(engine_of(self), request)) as stream:
                chunks, end = split_events(feed_streamer(stream, stream.prompt_ids, streamer))
                answer = text_result(stream)
            return text_alone(answer) if request.speech is None else (answer, join_audio(chunks, len(end.sequences)))

    def stream(self, input_ids: Any = None, speaker: str | None = None, **kwargs: Any) -> Stream:
        """Answers a prompt piece by piece: yields `TextDelta`, `AudioChunk` and at last a `StreamEnd`.

        kwargs: the processor's outputs; speaker or spk (a name of the config, default "Ethan"); return_audio or
        generation_mode="text"; options of the text as `thinker_*` or without prefix, those of `thinker.generate`
        (`max_new_tokens`, `do_sample`, `stop_strings`, ...), sampling of code 0 as `talker_*`, of the other codes as
        `predictor_*`; `seed` for all three (without one `mindspore.set_seed` makes answers repeatable);
        `token2wav_chunk_frames`: frames per audio chunk, a list whose last number repeats; tokenizer: fills the texts of
        `TextDelta`; logprobs: how many of the likeliest tokens it names with their log-probabilities (0 to 20; see `Logprobs`);
        prefill_tokens: of the prompt that are read at a time (128, 256, 384 or 512), and found again at a multiple of as many.
        Breaking the loop off and closing the iterator frees the caches. Raises `InputError` before any work.
        """
        return Stream(engine_of(self), parse_request(self, arguments_of(kwargs, input_ids=input_ids, speaker=speaker)))

    def say(self, input_ids: Any = None, speaker: str | None = None, **kwargs: Any) -> Stream:
        """As `stream`, but speaks the assistant turn that the prompt ends with instead of writing one."""
        arguments = arguments_of(kwargs, input_ids=input_ids, speaker=speaker)
        return Stream(engine_of(self), parse_request(self, arguments, given=True))

    def engine(
        self,
        max_rows: int = 16,
        tokens: int | None = None,
        speech: str | None = None,
        speech_device: int | None = None,
        kv_cache_dtype: str = "auto",
    ) -> Engine:
        """An `Engine` for many callers: `add(**inputs, ...) -> id`, `step() -> [(id, event), ...]`, `cancel(id)`, `close()`, and
        `read(**inputs) -> id` for what is to be answered later.

        max_rows: answers at work at a time, more wait; tokens: that the caches hold of all of them (default: as much as they may
        need, or fits into memory). It is another one than `generate` and `stream` share, with caches of its own.

        speech="process": a process of its own speaks, and texts do not wait for it; on Ascend on the card of number speech_device,
        among those that this process may see. It loads the talker from the model's folder if the model was loaded with
        enable_audio_output=False, else it gets a copy. Where it dies, texts go on, and what is spoken ends with a `ProcessError`.

        kv_cache_dtype="int8" (CPU): keys and values are stored as whole numbers of 8 bits with a scale for each token and head, so
        that the same memory holds 3.9 times as many tokens of heads of 128. Raises `InputError` where that cannot be.
        """
        return Engine(self, max_rows, tokens, speech=speech, speech_device=speech_device, kv_cache_dtype=kv_cache_dtype)


def without_speech(config: Qwen3OmniMoeConfig) -> Qwen3OmniMoeConfig:
    """The configuration of the same model without talker and vocoder."""
    return config.copy(enable_audio_output=False, talker_config=None, code2wav_config=None)

"""The public model classes: the cells of `modeling`, put together, loaded from checkpoints, and made to generate."""

from dataclasses import replace

from .config import (
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeTalkerConfig,
    Qwen3OmniMoeThinkerConfig,
)
from .errors import InputError
from .pretrained import PretrainedMixin

from mindspore import nn  # isort: skip  (pretrained explains a missing MindSpore first)

from .generation.accord import Alone
from .generation.arguments import sampling_params, take_inputs, take_text_options
from .generation.decode import feed_streamer, generate_text, text_result
from .generation.reader import thinker_reader
from .generation.request import parse_request
from .generation.speech import OmniStream, join_audio, split_events
from .modeling.code2wav import Code2Wav
from .modeling.steps import StepPool
from .modeling.talker import Talker
from .modeling.thinker import Thinker


class Qwen3OmniMoeThinkerForConditionalGeneration(PretrainedMixin, Thinker):
    """The thinker alone: understands text, images, audio and video, answers in text.

    `thinker(**inputs)` is one forward pass (see `Thinker.construct`), `thinker.generate(**inputs)` writes.
    """

    config_class = Qwen3OmniMoeThinkerConfig
    checkpoint_prefix = "thinker."
    accord = Alone()  # see generation/accord.py

    def __init__(self, config):
        super().__init__(self.config_class.validated(config))
        self.steps = StepPool()

    def read(self, batch_size):
        """A context manager around a `ThinkerReader`: a prompt, then tokens, on a cache of its own."""
        return thinker_reader(self, batch_size)

    def generate(self, **kwargs):
        """Prompt and new token ids int64 `[B, T + new]`; rows that ended earlier are padded.

        kwargs: the processor's outputs, the fields of `SamplingParams` (max_new_tokens, do_sample, temperature, top_k,
        top_p, repetition_penalty, min_new_tokens, suppress_tokens, eos_token_id, pad_token_id, seed), and
        stop_strings with tokenizer, streamer, return_dict_in_generate, output_scores.
        """
        inputs = take_inputs(kwargs)
        options = take_text_options(kwargs)
        return generate_text(self, inputs, self.sampling_params(kwargs), **options)

    def sampling_params(self, kwargs, **defaults):
        """`SamplingParams` of the text; ids that nobody named come from the checkpoint's generation_config.json."""
        known = self.generation_defaults
        ids = {"eos_token_id": known.eos_token_id, "pad_token_id": known.pad_token_id}
        params = sampling_params(kwargs, "generate", **{**ids, **defaults})
        params.check_vocabulary(self.config.text_config.vocab_size)
        return params


class SpeechPart(PretrainedMixin):
    """A part of a checkpoint that speaks; `config_section` names its configuration."""

    config_section = None

    def __init__(self, config):
        super().__init__(self.config_class.validated(config))

    @classmethod
    def _read_config(cls, folder):
        config = Qwen3OmniMoeConfig.from_pretrained(folder)
        if not config.enable_audio_output:
            raise InputError(
                f"{folder} has no talker (enable_audio_output is false in its config.json), so it holds no {cls.__name__}"
            )
        return getattr(config, cls.config_section)


class Qwen3OmniMoeTalkerForConditionalGeneration(SpeechPart, Talker):
    """The talker alone, loaded from a full checkpoint."""

    config_class = Qwen3OmniMoeTalkerConfig
    config_section = "talker_config"
    checkpoint_prefix = "talker."


class Qwen3OmniMoeCode2Wav(SpeechPart, Code2Wav):
    """The vocoder alone, loaded from a full checkpoint."""

    config_class = Qwen3OmniMoeCode2WavConfig
    config_section = "code2wav_config"
    checkpoint_prefix = "code2wav."


class Qwen3OmniMoeForConditionalGeneration(PretrainedMixin, nn.Cell):
    """The whole model: `thinker`, and with audio output `talker` and `code2wav`."""

    config_class = Qwen3OmniMoeConfig

    def __init__(self, config):
        super().__init__()
        self.config = config = self.config_class.validated(config)
        self.folder = None
        self.steps = StepPool()
        self.thinker = Qwen3OmniMoeThinkerForConditionalGeneration(config.thinker_config)
        if config.enable_audio_output:
            self.talker = Qwen3OmniMoeTalkerForConditionalGeneration(config.talker_config)
            self.code2wav = Qwen3OmniMoeCode2Wav(config.code2wav_config)

    @classmethod
    def _read_config(cls, folder, enable_audio_output=None):
        config = super()._read_config(folder)
        if enable_audio_output and not config.enable_audio_output:
            raise InputError(
                f"{folder} has no talker (enable_audio_output is false in its config.json): it is a Thinking "
                "or Captioner checkpoint and answers in text only"
            )
        if enable_audio_output is False:
            config = without_speech(config)
        return config

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        model = super().from_pretrained(folder, **kwargs)
        model.folder = folder
        known = model.generation_defaults
        end = known.eos_token_id or (model.config.im_end_token_id,)
        model.thinker.generation_defaults = replace(known, eos_token_id=end)
        return model

    from_pretrained.__func__.__doc__ = PretrainedMixin.from_pretrained.__doc__

    @property
    def has_talker(self):
        """Whether the model can speak."""
        return "talker" in self._cells

    def enable_talker(self):
        """Loads talker and vocoder from the folder that the model came from. Raises `InputError` if it has none."""
        if self.has_talker:
            return
        if self.folder is None:
            raise InputError("this model was not loaded from a folder, so there is no talker to load")
        strategy = None if self.team is None else self.team.strategy
        kwargs = {"mindspore_dtype": self.dtype, "progress": False, "parallel": strategy}
        self.talker = Qwen3OmniMoeTalkerForConditionalGeneration.from_pretrained(self.folder, **kwargs)
        self.code2wav = Qwen3OmniMoeCode2Wav.from_pretrained(self.folder, **kwargs)
        self.config = Qwen3OmniMoeConfig.from_pretrained(self.folder)

    def disable_talker(self):
        """Frees talker and vocoder; the model then answers in text only."""
        if self.has_talker:
            del self.talker, self.code2wav
            self.steps.clear()
            self.config = without_speech(self.config)

    def generate(self, **kwargs):
        """Answers a prompt: `(text_ids, audio)`.

        text_ids: prompt and new ids int64 `[B, T + new]`, or a `GenerateOutput` with
        `thinker_return_dict_in_generate=True`. audio: None without speech; float32 at 24 kHz, `[1, 1, samples]` for one
        conversation and a list of `[samples]` for a batch. All arguments are those of `stream`.
        """
        request = parse_request(self, kwargs, whole=True)
        stream = self._events(request)
        events = feed_streamer(stream, request.inputs["input_ids"], request.output.get("streamer"))
        chunks, end = split_events(events)
        text = text_result(end.sequences, stream.work.scores, request.output.get("return_dict_in_generate", False))
        return text, None if request.speech is None else join_audio(chunks, len(end.sequences))

    def stream(self, **kwargs):
        """Answers a prompt piece by piece: yields `TextDelta`, `AudioChunk` and at last a `StreamEnd`.

        kwargs: the processor's outputs; speaker (a name of the config, default "Ethan"); return_audio or
        generation_mode="text"; sampling of the text as `thinker_*` or without prefix (`max_new_tokens`, `do_sample`,
        ...), of code 0 as `talker_*`, of the other codes as `predictor_*`; `seed` for all three;
        `token2wav_chunk_frames`: frames per audio chunk, a list whose last number repeats; tokenizer: fills the texts of
        `TextDelta`.
        Breaking the loop off and closing the iterator frees the caches. Raises `InputError` before any work.
        """
        return self._events(parse_request(self, kwargs))

    def say(self, **kwargs):
        """As `stream`, but says the assistant turn that the prompt ends with instead of writing one."""
        return self._events(parse_request(self, kwargs, given=True))

    def _events(self, request):
        return OmniStream(self, request)


def without_speech(config):
    """The configuration of the same model without talker and vocoder."""
    return config.copy(enable_audio_output=False, talker_config=None, code2wav_config=None)

"""What a server is started with: its limits, and what the model is asked when speech is to be transcribed or translated."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_text

MIB = 1 << 20
PROMPTS_FILE = "generation_config.json"
LANGUAGE = "{language}"
TRANSCRIBE = "Transcribe the {language} audio into text."
TRANSCRIBE_CHINESE = "请将这段中文语音转换为纯文本。"
TRANSLATE = "Listen to the provided speech and produce a translation in English text."
CHINESE = "zh"
NAMES = (
    "af Afrikaans, am Amharic, ar Arabic, as Assamese, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian, bn Bengali, "
    "bo Tibetan, br Breton, bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek, en English, es Spanish, "
    "et Estonian, eu Basque, fa Persian, fi Finnish, fo Faroese, fr French, gl Galician, gu Gujarati, ha Hausa, haw Hawaiian, "
    "he Hebrew, hi Hindi, hr Croatian, ht Haitian, hu Hungarian, hy Armenian, id Indonesian, is Icelandic, it Italian, "
    "ja Japanese, jw Javanese, jv Javanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, la Latin, "
    "lb Luxembourgish, ln Lingala, lo Lao, lt Lithuanian, lv Latvian, mg Malagasy, mi Maori, mk Macedonian, ml Malayalam, "
    "mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, ne Nepali, nl Dutch, nn Nynorsk, no Norwegian, oc Occitan, "
    "pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian, ru Russian, sa Sanskrit, sd Sindhi, si Sinhala, sk Slovak, "
    "sl Slovenian, sn Shona, so Somali, sq Albanian, sr Serbian, su Sundanese, sv Swedish, sw Swahili, ta Tamil, te Telugu, "
    "tg Tajik, th Thai, tk Turkmen, tl Tagalog, tr Turkish, tt Tatar, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, "
    "yi Yiddish, yo Yoruba, yue Cantonese, zh Chinese"
)
LANGUAGES: dict[str, str] = {code: name for code, _, name in (entry.partition(" ") for entry in NAMES.split(", "))}
"""English names by ISO-639-1 codes, those that OpenAI's models know."""


@dataclass(frozen=True)
class Settings:
    """model: a folder or a model's name; name: by which callers ask for it (default: the folder's, or the name); instance: name of
    this one among several servers, part of the ids of its spoken answers.

    api_keys: one of them must be sent, if there are any; origins: of pages elsewhere that browsers may let ask; media_hosts: names
    that media may be fetched from, or "public".

    max_rows: answers that are computed at a time; max_queue: that wait beside them, before callers are refused; max_model_len:
    tokens of prompt and answer together; cache_tokens: of all answers together; kv_cache_dtype: see `Engine`; max_body_bytes: of
    one request; media_threads: that decode media; max_sessions: realtime conversations that are open at a time.

    request_s: the longest that an answer may take; silence_s: the longest that a caller may neither send nor read anything while it
    is his turn; drain_s: how long the end of the server waits for answers under way; session_idle_s: the longest that clients of
    realtime conversations may send nothing.

    access_log: a line on standard error for each request; log_content: and prompts and answers.
    transcription_prompt, translation_prompt: see `Prompts`; None: the checkpoint's.
    """

    model: str
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    instance: str | None = None
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_rows: int = 16
    max_queue: int = 128
    max_model_len: int | None = None
    cache_tokens: int | None = None
    kv_cache_dtype: str = "auto"
    max_body_bytes: int = 256 * MIB
    media_threads: int = 4
    request_s: float = 600.0
    silence_s: float = 60.0
    drain_s: float = 60.0
    max_sessions: int = 64
    session_idle_s: float = 600.0
    media_hosts: Any = "public"
    dtype: str = "auto"
    quantize: str | None = None
    quantize_group: int | None = None
    quantize_embeddings: bool = False
    compile_steps: bool = True
    parallel: str = "auto"
    speech: str | None = None
    speech_device: int | None = None
    text_only: bool = False
    certificate: str | None = None
    certificate_key: str | None = None
    access_log: bool = False
    log_content: bool = False
    transcription_prompt: str | None = None
    translation_prompt: str | None = None


@dataclass(frozen=True)
class Prompts:
    """What stands behind the sound that is to be transcribed or translated. The defaults are those of Qwen's own evaluations.

    A model that was trained with others names them in its generation_config.json, by `transcription_prompt` and
    `translation_prompt`; `{language}` in them is the language's English name, where the caller names it.
    """

    transcription: str | None = None
    translation: str = TRANSLATE

    @classmethod
    def load(cls, folder: str | os.PathLike, transcription: str | None = None, translation: str | None = None) -> "Prompts":
        """Those that are given, else the checkpoint's in `folder`, else Qwen's. Raises `CheckpointError` for what is no text."""
        path = Path(folder) / PROMPTS_FILE
        own: dict[str, Any] = {}
        if os.path.lexists(path):
            try:
                config = json.loads(read_text(path))
                own = {name: config.get(name) for name in ("transcription_prompt", "translation_prompt")}
            except (ValueError, AttributeError, OSError, RecursionError) as error:
                raise CheckpointError(f"{path} is not a usable generation config: {error}; mend or remove it") from None
            for name, text in own.items():
                if text is not None and not (isinstance(text, str) and text.strip()):
                    raise CheckpointError(f"{path}: {name} is {text!r:.80}, expected a text; mend or remove it")
        return cls(
            transcription or own.get("transcription_prompt"), translation or own.get("translation_prompt") or TRANSLATE
        )

    def transcribe(self, language: str | None = None) -> str:
        """For a sound in a language, a key of `LANGUAGES`, or in one that nobody has named."""
        if self.transcription is None and language == CHINESE:
            return TRANSCRIBE_CHINESE
        prompt = self.transcription or TRANSCRIBE
        if language is None:
            return prompt.replace(f"{LANGUAGE} ", "").replace(LANGUAGE, "")
        return prompt.replace(LANGUAGE, LANGUAGES[language])


def language_code(text: str) -> str | None:
    """The key of `LANGUAGES` for a code, with or without a region, or for an English name; None for others."""
    word = text.strip().lower()
    code = word.replace("_", "-").split("-")[0]
    if code in LANGUAGES:
        return code
    return next((code for code, name in LANGUAGES.items() if name.lower() == word), None)

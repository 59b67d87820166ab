"""What the model is asked when a sound is to be written down or translated.

The wordings are those of Qwen's own evaluations. A model that knows others says so in its generation_config.json, by
`transcription_prompt` and `translation_prompt`; whoever starts the server may too. `{language}` in them is the language's English name,
where the caller has said it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..files import read_text

FILE = "generation_config.json"
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
LANGUAGES = dict(name.split(" ") for name in NAMES.split(", "))
"""By ISO-639-1, those that OpenAI's models know."""


@dataclass(frozen=True)
class Prompts:
    """What stands behind the sound."""

    transcription: str | None = None
    translation: str = TRANSLATE

    @classmethod
    def of(cls, folder: str | os.PathLike, transcription: str | None = None, translation: str | None = None) -> "Prompts":
        """Those that are given, else those of the checkpoint in `folder`, else Qwen's. Raises `CheckpointError` for what is no text."""
        path = Path(folder) / FILE
        said = {}
        if os.path.lexists(path):
            try:
                said = json.loads(read_text(path))
                said = {name: said.get(name) for name in ("transcription_prompt", "translation_prompt")}
            except (ValueError, AttributeError, OSError, RecursionError) as error:
                raise CheckpointError(f"{path} is not a usable generation config: {error}; mend or remove it") from None
            for name, text in said.items():
                if text is not None and not (isinstance(text, str) and text.strip()):
                    raise CheckpointError(f"{path}: {name} is {text!r:.80}, expected a text; mend or remove it")
        return cls(
            transcription or said.get("transcription_prompt"), translation or said.get("translation_prompt") or TRANSLATE
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

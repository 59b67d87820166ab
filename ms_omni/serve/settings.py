"""What a server was told when it was started."""

from dataclasses import dataclass
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """model: a folder or a model's name; name: by which callers ask for it (default: the folder's, or the name).

    instance: what it is called among several servers, as ids of its spoken answers say.
    api_keys: one of them must be sent, if there are any; origins: of pages elsewhere that browsers may let ask.
    max_rows: answers at work at a time; max_queue: that wait beside them, before callers are turned away; max_model_len: tokens of
    prompt and answer together; cache_tokens: of all answers together, and kv_cache_dtype, see `Engine`; max_body_bytes: of one request; media_threads: that decode media; request_s: the longest that an answer
    may take, in seconds; silence_s: the longest that a caller may neither send nor take anything while it is his turn; drain_s:
    that answers under way are waited for when the server ends; media_hosts: names that media may be fetched from, or "public".
    max_sessions: realtime conversations that are open at a time; session_idle_s: the longest that their clients may send nothing.

    access_log: a line on standard error for each request; log_content: and what was asked and answered.
    transcription_prompt, translation_prompt: see `hearing.Prompts`; None: the checkpoint's.
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

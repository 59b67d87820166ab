"""What a running server is made of: the engine's thread, the threads that decode media, and who may ask."""

import asyncio
import contextvars
import copy
import hmac
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.datastructures import Headers

from .. import __version__
from ..errors import InputError
from ..generation.options import DEFAULT_SPEAKER
from ..hub import resolve
from ..input.access import AccessPolicy
from .answer_text import OPEN, THINK
from .completion import TokenTexts, Transcripts
from .grammar import Grammars
from .media import Downloader, FeatureCache
from .metrics import AnswerMeter, Metrics, print_content, request_totals
from .protocol import ApiError, busy, invalid
from .settings import MIB, Prompts, Settings
from .worker import Answer, EngineThread

STARTING, READY, DRAINING, FAILED = "starting", "ready", "draining", "failed"
END_S = 30
"""For the tick under way."""
POLL_S = 0.05
THINK_TOKENS = 8
"""At the end of a prompt, which may open the answer's thoughts."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DECODED_BYTES = 1024 * MIB
"""The patches that the model reads are four to eight times that. The longest video has 700 MiB, 65536 tokens of pictures 200."""

_accepted: contextvars.ContextVar[bool] = contextvars.ContextVar("accepted", default=False)
"""Whether the request that is being handled was accepted when it came; it may go on while the server drains."""


class Server:
    """State of one server; made inside its event loop.

    state: "starting", "ready", "draining" or "failed"; doing: what it does just now, for people; processor: of the event loop's
    thread, for tokens and settings, not for media: `prepare` has one per thread. log: how people are told what it does (default: a
    line on standard error).
    """

    def __init__(self, settings: Settings, log: Callable[[str], None] | None = None):
        self.settings, self._log = settings, log or _print
        self.state, self.doing = STARTING, "starting"
        self.created = int(time.time())
        self.processor: Any = None
        self.prompts = Prompts()
        self.model: Any = None
        self.policy = AccessPolicy.public(
            hosts=settings.media_hosts,
            schemes=("http", "https", "data"),
            image_bytes=32 * MIB,
            audio_bytes=128 * MIB,
            video_bytes=512 * MIB,
            inline_bytes=256 * MIB,
            decoded_bytes=DECODED_BYTES,
            silence_s=20.0,
            total_s=120.0,
        )
        self.metrics = Metrics(self)
        self.sessions: set[Any] = set()  # realtime conversations that are open
        self.requests = 0  # under way, from their heads to the ends of their answers
        self.body_bytes = 0  # of their bodies
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(settings.media_threads, "media")
        self.downloader = Downloader(self.policy)
        self.transcripts = Transcripts(settings.instance)
        self.end_ids: tuple[int, ...] = ()
        self.grammars: Grammars | None = None
        self.worker = EngineThread(self._load, asyncio.get_running_loop(), settings.max_rows + settings.max_queue)

    # -- start and end -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads the model, makes its graphs and answers a question to itself; `state` says how far it is."""
        self.worker.start()
        try:
            await self.worker.ready
            if self.state != STARTING:  # told to end meanwhile
                return
            self.report("answering a question to itself")
            await self._self_test()
            self.grammars = await asyncio.to_thread(Grammars.for_processor, self.processor, self.vocabulary, self.end_ids)
            self.token_texts = TokenTexts(self.processor.tokenizer)
        except (Exception, asyncio.CancelledError):
            self.state = FAILED
            raise
        if self.state == STARTING:
            self.state = READY
            self.report("ready")

    def report(self, text: str) -> None:
        """Tells people what it does, by `/ready` as well."""
        self.doing = text
        self._log(text)

    def _load(self):
        self.report("importing MindSpore")
        from ..input.processor import Qwen3OmniMoeProcessor

        settings = self.settings
        self.processor = Qwen3OmniMoeProcessor.from_pretrained(settings.model)
        self.processor.feature_extractor = FeatureCache(self.processor.feature_extractor)
        folder = resolve(settings.model, weights=False)
        self.prompts = Prompts.load(folder, settings.transcription_prompt, settings.translation_prompt)
        self.report("loading weights")
        self.model = load_model(settings)
        self.report("making the engine")
        return make_engine(self.model, settings)

    async def _self_test(self):
        messages = [{"role": "user", "content": "Hello!"}]
        inputs = await self.prepare(messages)
        speaks = self.worker.engine.speaks
        limits: dict[str, Any] = {"talker_max_new_tokens": 4} if speaks else {}
        answer = await self.worker.submit(inputs, max_new_tokens=4, return_audio=speaks, seed=0, **limits)
        self.end_ids = answer.end_ids
        async for _ in answer:
            pass

    def drain(self) -> None:
        """From now on no request is accepted any more."""
        if self.state in (STARTING, READY):
            self.state = DRAINING

    async def drained(self) -> None:
        """Waits for the requests under way, `drain_s` at most."""
        if self._is_idle:
            return
        try:
            await asyncio.wait_for(self._until_idle(), self.settings.drain_s)
        except asyncio.TimeoutError:
            self.report(f"{len(self.worker.answers)} answers are not done in {self.settings.drain_s:g} s and are given up")

    @property
    def _is_idle(self):
        return self.worker.idle.is_set() and not self.sessions and not self.requests

    async def _until_idle(self):
        while not self._is_idle:  # sessions end behind their answers
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ends the engine; one that is being loaded ends with the process."""
        self.worker.close()
        self.downloader.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.worker.engine is not None:
            await asyncio.to_thread(self.worker.join, END_S)

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def speaks(self) -> bool:
        """Whether there is a voice."""
        return self.state in (READY, DRAINING) and self.worker.engine.speaks

    @property
    def voices(self) -> list[str]:
        """Names of the voices, as a person would write them."""
        if not self.speaks:
            return []
        known = self.worker.engine.config.talker_config.speaker_id
        return sorted((name.capitalize() for name in known), key=lambda name: (name != DEFAULT_SPEAKER, name))

    @property
    def fingerprint(self) -> str:
        """What answers to a seed depend on beside the request."""
        return f"ms_omni-{__version__}-{self.settings.name}-{self.settings.dtype}"

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.worker.engine.thinker_cell.config.text_config.vocab_size

    def prompt_tokens(self, ids: np.ndarray) -> dict[str, int]:
        """How many tokens of a prompt, ids `[1, T]`, are of which kind; frames of videos are pictures."""
        processor = self.processor
        sounds = int((ids == processor.audio_token_id).sum())
        pictures = int(np.isin(ids, [processor.image_token_id, processor.video_token_id]).sum())
        return {"text_tokens": ids.size - sounds - pictures, "audio_tokens": sounds, "image_tokens": pictures}

    def opens_thoughts(self, ids: np.ndarray) -> bool:
        """Whether a prompt, ids `[1, T]`, has opened the thoughts of its answer."""
        return self.processor.tokenizer.decode(ids[0][-THINK_TOKENS:]).rstrip().endswith(THINK)

    @property
    def call_token(self) -> int | None:
        """The token that begins a tool call, which is not said; None for a model that has none."""
        return self.processor.tokenizer.get_added_vocab().get(OPEN)

    def check_ready(self) -> None:
        """Raises `ApiError` 503 where no request can be accepted; one that was may go on until it is answered."""
        if self.worker.stopped.is_set() or self.state == FAILED:
            raise busy("the engine has stopped; the server has to be started again", 503, "unavailable")
        if self.state != READY:
            raise busy(f"the server is {self.state} ({self.doing}); try again later", 503, "unavailable")
        _accepted.set(True)

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError` 404 for a model that is not here."""
        if name is not None and name != self.settings.name:
            known = self.settings.name
            raise ApiError(404, f"there is no model {name!r} here; this server has {known!r}", "model", "model_not_found")

    async def prepare(self, messages: list[dict], **options: Any) -> dict[str, Any]:
        """Model inputs of a conversation, made in a thread that decodes media; options as of `apply_chat_template`.

        Raises `InputError` and `MediaError` for what cannot be used.
        """
        messages = await self.downloader.downloaded(messages)

        def work(processor):
            inputs = processor.apply_chat_template(
                [messages], tokenize=True, return_dict=True, policy=self.policy, **{"add_generation_prompt": True, **options}
            )
            return {**inputs, "use_audio_in_video": bool(options.get("use_audio_in_video"))}

        return await self.in_pool(work)

    async def in_pool(self, work: Callable[[Any], Any]) -> Any:
        """What `work(processor)` returns, in a thread that has a processor of its own: tokenizers are not safe among threads."""

        def run():
            if not hasattr(self._own, "processor"):
                self._own.processor = copy.deepcopy(self.processor)
            return work(self._own.processor)

        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, run)

    async def submit(self, inputs: dict[str, Any], draft: bool = False, **options: Any) -> Answer:
        """The answer to model inputs; options as of `engine.add`, and of `worker.submit`; draft: nobody has asked for it yet, see
        `Answer.claim`. Raises `InputError` and `ApiError`.
        """
        if not _accepted.get():
            self.check_ready()
        limit = self.settings.max_model_len
        count = inputs["input_ids"].shape[1]
        if limit is not None and not options.get("given"):
            if count >= limit:
                raise invalid(
                    f"the prompt has {count} tokens, and this server takes {limit} for prompt and answer together",
                    "messages",
                    "context_length_exceeded",
                )
            room = limit - count
            wanted = options.get("max_new_tokens")
            if wanted is not None and wanted > room:
                raise invalid(
                    f"{wanted} tokens are wanted behind a prompt of {count}, and this server takes {limit} together; ask for at "
                    f"most {room}",
                    "max_completion_tokens",
                    "context_length_exceeded",
                )
            options.setdefault("max_new_tokens", room)
        done = partial(print_content, self.processor, inputs["input_ids"][0]) if self.settings.log_content else None
        meter = AnswerMeter(self.metrics, count, done, wanted=not draft)
        answer = await self.worker.submit(inputs, meter, max_time=self.settings.request_s, **options)
        if (totals := request_totals.get()) is not None:
            totals.add(meter)
        return answer

    async def read(self, inputs: dict[str, Any], **options: Any) -> Answer:
        """Reads model inputs into the cache, ahead of an answer; options as of `engine.read`. Its one event is a `StreamEnd`."""
        self.check_ready()
        count, limit = inputs["input_ids"].shape[1], self.settings.max_model_len
        if limit is not None and count >= limit:
            raise invalid(f"the prompt has {count} tokens, more than {limit}", code="context_length_exceeded")
        return await self.worker.submit(inputs, prefill=True, **options)

    # -- who may ask -------------------------------------------------------------------------------------------------

    def check_caller(self, headers: Headers, key: str | None = None) -> None:
        """Raises `ApiError` 401 for a wrong key, 403 for a page of somebody else's in a browser.

        key: one that came another way than by `Authorization: Bearer`.
        """
        self._check_origin(headers)
        if not self.settings.api_keys:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else key
        if given is None:
            raise ApiError(401, "an API key is needed: send 'Authorization: Bearer KEY'", code="missing_api_key")
        fits = [hmac.compare_digest(given.encode(), known.encode()) for known in self.settings.api_keys]
        if not any(fits):
            raise ApiError(401, "the API key is wrong", code="invalid_api_key")

    def _check_origin(self, headers):
        """Browsers say which page asks; without keys, a page of somebody else's must not use what listens on this machine."""
        origin = headers.get("origin")
        if origin is None or origin in self.settings.origins or "*" in self.settings.origins:
            return
        try:
            host = urlsplit(f"//{headers.get('host', '')}")
            same = urlsplit(origin).netloc == host.netloc
        except ValueError:  # no addresses
            raise ApiError(403, "Origin and Host are not those of a page", code="origin") from None
        name = host.hostname or ""
        is_address = name.replace(".", "").isdigit() or ":" in name  # the owner of a name may make it lead here
        if same and (self.settings.api_keys or name in (*LOOPBACK, self.settings.host) or is_address):
            return
        raise ApiError(403, f"pages from {origin} may not ask this server; allow it with --allow-origin", code="origin")


def _print(text):
    print(f"ms-omni serve: {text}", file=sys.stderr, flush=True)


def load_model(settings: Settings) -> Any:
    """The model, on every rank alike."""
    from ..engine.kv_pool import check_cache_dtype
    from ..model import Qwen3OmniMoeForConditionalGeneration

    check_cache_dtype(settings.kv_cache_dtype)
    silent = settings.text_only or settings.speech == "process"  # whose process has a talker of its own
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        settings.model,
        dtype=settings.dtype,
        quantize=settings.quantize,
        quantize_group=settings.quantize_group,
        quantize_embeddings=settings.quantize_embeddings,
        compile_steps=settings.compile_steps,
        parallel=settings.parallel,
        **({"enable_audio_output": False} if silent else {}),
    )


def make_engine(model: Any, settings: Settings) -> Any:
    """The engine of a model, on every rank alike. Raises `InputError` where its caches do not hold what is to be allowed."""
    from ..modeling import BLOCK_TOKENS

    engine = model.engine(
        settings.max_rows,
        tokens=settings.cache_tokens,
        speech=settings.speech,
        speech_device=settings.speech_device,
        kv_cache_dtype=settings.kv_cache_dtype,
    )
    held, wanted = engine.blocks * BLOCK_TOKENS, settings.max_model_len
    if wanted is not None and wanted > held:
        engine.close()
        raise InputError(
            f"--max-model-len is {wanted}, but the caches hold {held} tokens; take {held} or less, or give --cache-tokens"
        )
    return engine

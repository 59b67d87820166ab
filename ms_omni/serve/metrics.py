"""What `/metrics` tells: by the names that dashboards of language models have (vLLM's), and ours for speech, as the benchmark calls them.

Server.ask --Measured--> one answer's moments --at its end--> Metrics --GET /metrics--> Prometheus
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..bench.callers import Timings, gaps
from ..errors import CacheFull
from ..outputs import AudioChunk, StreamEnd, StreamError, TextDelta

TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
FIRST_BUCKETS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE_BUCKETS = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0)
FACTOR_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
LENGTH_BUCKETS = tuple(2**power for power in range(18))
STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"
"""How answers end; abort: the caller has gone."""
RATE_HZ = 24_000


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self, server: Any):
        self.registry = CollectorRegistry()
        self._labels = {"model_name": server.settings.name}
        self._http = {}
        for name, text, buckets in (
            ("first_token", "vllm:time_to_first_token_seconds|From a request to its first token", FIRST_BUCKETS),
            ("token", "vllm:time_per_output_token_seconds|Per token of answers without speech, behind the first", TOKEN_BUCKETS),
            ("between", "vllm:inter_token_latency_seconds|Between tokens of answers without speech", TOKEN_BUCKETS),
            ("whole", "vllm:e2e_request_latency_seconds|From a request to its end", WHOLE_BUCKETS),
            ("asked", "vllm:request_prompt_tokens|Tokens of a prompt", LENGTH_BUCKETS),
            ("written", "vllm:request_generation_tokens|Tokens of an answer", LENGTH_BUCKETS),
            ("first_sound", "ms_omni_first_sound_seconds|From a request to its first piece of sound", FIRST_BUCKETS),
            ("factor", "ms_omni_real_time_factor|Seconds from a request to its last sound, per second of speech", FACTOR_BUCKETS),
        ):  # fmt: skip
            setattr(self, name, self._made(Histogram, text, buckets=buckets))
        for name, text in (
            ("prompt_tokens", "vllm:prompt_tokens|Tokens of prompts"),
            ("tokens", "vllm:generation_tokens|Tokens of answers"),
            ("cancelled", "ms_omni_requests_cancelled|Answers whose callers went away"),
            ("sound_s", "ms_omni_sound_seconds|Seconds of speech"),
            ("under_runs", "ms_omni_under_runs|Times that a listener had heard all that was sent before more came"),
            ("silence_s", "ms_omni_silence_seconds|Seconds that listeners waited for"),
        ):
            setattr(self, name, self._made(Counter, text))
        self.ended = Counter(
            "vllm:request_success", "Answers by how they ended", ["model_name", "finished_reason"], registry=self.registry
        )
        for reason in (STOP, LENGTH, ABORT, ERROR):
            self.ended.labels(finished_reason=reason, **self._labels)
        self.requests = Counter(
            "http_requests", "Requests by route and status", ["method", "status", "handler"], registry=self.registry
        )
        self.request_s = Histogram(
            "http_request_duration_seconds",
            "From a request to the end of its answer",
            ["method", "handler"],
            buckets=WHOLE_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Now(server, self._labels))
        ProcessCollector(registry=self.registry)

    # of which the histograms and counters are, each with the model's name
    first_token: Any
    token: Any
    between: Any
    whole: Any
    asked: Any
    written: Any
    first_sound: Any
    factor: Any
    prompt_tokens: Any
    tokens: Any
    cancelled: Any
    sound_s: Any
    under_runs: Any
    silence_s: Any

    def _made(self, kind, text, **options):
        name, help = text.split("|")
        return kind(name, help, list(self._labels), registry=self.registry, **options).labels(**self._labels)

    def answered(self, times: Timings, prompt_tokens: int, reason: str) -> None:
        """An answer has ended, in one of the four ways."""
        self.ended.labels(finished_reason=reason, **self._labels).inc()
        self.prompt_tokens.inc(prompt_tokens)
        self.tokens.inc(len(times.tokens))
        if reason == ABORT:
            self.cancelled.inc()
        if times.sounds:
            self.first_sound.observe(times.first_sound_s)
            self.sound_s.inc(times.sound_s)
            silences = gaps(times.sounds)
            self.under_runs.inc(len(silences))
            self.silence_s.inc(sum(silences))
        if times.tokens:
            self.first_token.observe(times.first_token_s)
        if reason not in (STOP, LENGTH) or times.ended is None:
            return
        self.asked.observe(prompt_tokens)
        self.written.observe(len(times.tokens))
        self.whole.observe(times.ended - times.called)
        if times.sounds:
            self.factor.observe(times.real_time_factor)
        elif len(times.tokens) > 1:
            self.token.observe(times.token_s)
            for before, moment in zip(times.tokens, times.tokens[1:]):
                self.between.observe(moment - before)


class Measured:
    """One answer on its way: hears of its events as the event loop does; done: called once it has ended, `reason` says how;
    taken: whether somebody has asked for it; what nobody does before it ends is not counted.
    """

    def __init__(
        self, metrics: Metrics, prompt_tokens: int, done: "Callable[[Measured], None] | None" = None, taken: bool = True
    ):
        self.metrics, self.prompt_tokens, self.done, self.taken = metrics, prompt_tokens, done, taken
        self.times = Timings(time.monotonic())
        self.ids: list[int] = []
        self.reason: str | None = None

    def hear(self, event: Any) -> None:
        """Of an event."""
        now = time.monotonic()
        if isinstance(event, TextDelta):
            self.times.tokens.append(now)
            self.ids.append(int(event.token[0]))
        elif isinstance(event, AudioChunk):
            self.times.sounds.append((now, event.pcm.shape[1] / RATE_HZ))
        elif isinstance(event, (StreamEnd, StreamError)):
            self._end(end_of(event), now)

    def leave(self, wanted: bool = False) -> None:
        """Its caller has gone, or has all that he asked for."""
        self._end(STOP if wanted else ABORT, time.monotonic())

    def take(self) -> None:
        """Somebody asks for it."""
        self.taken = True
        if self.reason is not None:
            self._count()

    def _end(self, reason, now):
        if self.reason is None:
            self.reason, self.times.ended = reason, now
            if self.taken:
                self._count()

    def _count(self):
        self.metrics.answered(self.times, self.prompt_tokens, self.reason)
        if self.done is not None:
            self.done(self)


def end_of(event: StreamEnd | StreamError) -> str:
    """How an answer has ended, by its last event."""
    if isinstance(event, StreamError):
        return LENGTH if isinstance(event.error, CacheFull) else ERROR
    return LENGTH if event.reasons[:1] in (("length",), ("time",)) else STOP


class _Now(Collector):
    """What is so at the moment: asked for when somebody looks. It reads what the engine's thread writes, numbers one by one."""

    def __init__(self, server: Any, labels: dict[str, str]):
        self.server, self.labels = server, labels

    def describe(self) -> list[Metric]:
        return []  # nothing is looked at when it is registered

    def collect(self) -> Iterator[Metric]:
        engine = self.server.worker.engine
        if engine is None:
            return
        scheduler = engine.scheduler
        running = sum(not row.job.reads for row in [*scheduler.running])
        waiting = max(self.server.worker.asked - running, 0)
        yield self._gauge("vllm:num_requests_running", "Answers at work", running)
        yield self._gauge("vllm:num_requests_waiting", "Answers that wait for a place", waiting)
        for name, pool in zip(("vllm:kv_cache_usage_perc", "ms_omni_talker_cache_usage_perc"), scheduler.pools):
            if pool is not None:
                yield self._gauge(name, "Share of the cache that answers use, 0 to 1", pool.used / max(pool.limit, 1))
        for name, text, value in (
            ("vllm:prefix_cache_queries", "Tokens of prompts that were looked for in the cache", scheduler.looked),
            ("vllm:prefix_cache_hits", "Of these, tokens that were found", scheduler.found),
            ("vllm:num_preemptions", "Times that an answer gave up its place for older ones", scheduler.drops),
        ):
            family = CounterMetricFamily(name, text, labels=list(self.labels))
            family.add_metric(list(self.labels.values()), value)
            yield family

    def _gauge(self, name, text, value):
        family = GaugeMetricFamily(name, text, labels=list(self.labels))
        family.add_metric(list(self.labels.values()), value)
        return family


async def metrics(request: Request) -> Response:
    """In Prometheus' text form."""
    return Response(generate_latest(request.app.state.server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


ROUTES = [Route("/metrics", metrics)]

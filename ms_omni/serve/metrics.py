"""What `/metrics` shows: by the names that dashboards of language models have (vLLM's), and ours for speech, as the benchmark calls them.

Server.submit --AnswerMeter--> timestamps of one answer --at its end--> Metrics --GET /metrics--> Prometheus
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
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
from ..outputs import SPEECH_RATE_HZ, AudioChunk, StreamEnd, StreamError, TextDelta

TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
FIRST_BUCKETS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE_BUCKETS = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0)
FACTOR_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
LENGTH_BUCKETS = tuple(2**power for power in range(18))
HISTOGRAMS = {
    "first_token": ("vllm:time_to_first_token_seconds", "From a request to its first token", FIRST_BUCKETS),
    "token": ("vllm:time_per_output_token_seconds", "Per token of answers without speech, behind the first", TOKEN_BUCKETS),
    "between": ("vllm:inter_token_latency_seconds", "Between tokens of answers without speech", TOKEN_BUCKETS),
    "whole": ("vllm:e2e_request_latency_seconds", "From a request to its end", WHOLE_BUCKETS),
    "prompt": ("vllm:request_prompt_tokens", "Tokens of a prompt", LENGTH_BUCKETS),
    "answer": ("vllm:request_generation_tokens", "Tokens of an answer", LENGTH_BUCKETS),
    "first_sound": ("ms_omni_first_sound_seconds", "From a request to its first piece of sound", FIRST_BUCKETS),
    "factor": ("ms_omni_real_time_factor", "Seconds from a request to its last sound, per second of speech", FACTOR_BUCKETS),
}
COUNTERS = {
    "prompt_tokens": ("vllm:prompt_tokens", "Tokens of prompts"),
    "tokens": ("vllm:generation_tokens", "Tokens of answers"),
    "cancelled": ("ms_omni_requests_cancelled", "Answers whose callers went away"),
    "sound_s": ("ms_omni_sound_seconds", "Seconds of speech"),
    "under_runs": ("ms_omni_under_runs", "Times that a listener had heard all that was sent before more came"),
    "silence_s": ("ms_omni_silence_seconds", "Seconds that listeners waited for"),
}
STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"
"""How answers end; abort: the caller has gone."""
REPEATED_PAD = re.compile(r"(<\|[a-z_]+_pad\|>)\1+")
SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+.*)")


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self, server: Any):
        self.registry = CollectorRegistry()
        self._labels = labels = {"model_name": server.settings.name}
        self._histograms = {
            key: Histogram(name, text, list(labels), buckets=buckets, registry=self.registry).labels(**labels)
            for key, (name, text, buckets) in HISTOGRAMS.items()
        }
        self._counters = {
            key: Counter(name, text, list(labels), registry=self.registry).labels(**labels)
            for key, (name, text) in COUNTERS.items()
        }
        self.ended = Counter(
            "vllm:request_success", "Answers by how they ended", ["model_name", "finished_reason"], registry=self.registry
        )
        for reason in (STOP, LENGTH, ABORT, ERROR):
            self.ended.labels(finished_reason=reason, **labels)
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
        self.registry.register(_EngineState(server, labels))
        ProcessCollector(registry=self.registry)

    def count(self, times: Timings, prompt_tokens: int, reason: str) -> None:
        """An answer has ended, in one of the four ways."""
        counters, histograms = self._counters, self._histograms
        self.ended.labels(finished_reason=reason, **self._labels).inc()
        counters["prompt_tokens"].inc(prompt_tokens)
        counters["tokens"].inc(len(times.tokens))
        if reason == ABORT:
            counters["cancelled"].inc()
        if times.sounds:
            histograms["first_sound"].observe(times.first_sound_s)
            counters["sound_s"].inc(times.sound_s)
            silences = gaps(times.sounds)
            counters["under_runs"].inc(len(silences))
            counters["silence_s"].inc(sum(silences))
        if times.tokens:
            histograms["first_token"].observe(times.first_token_s)
        if reason not in (STOP, LENGTH) or times.ended is None:
            return
        histograms["prompt"].observe(prompt_tokens)
        histograms["answer"].observe(len(times.tokens))
        histograms["whole"].observe(times.ended - times.called)
        if times.sounds:
            histograms["factor"].observe(times.real_time_factor)
        elif len(times.tokens) > 1:
            histograms["token"].observe(times.token_s)
            for before, moment in zip(times.tokens, times.tokens[1:]):
                histograms["between"].observe(moment - before)


class AnswerMeter:
    """Measures one answer; `reason` says how it has ended. done: called once it has.

    wanted: whether somebody has asked for it. An answer that was begun before counts from `claim` on; if nobody claims it, never.
    """

    def __init__(
        self,
        metrics: Metrics,
        prompt_tokens: int,
        done: "Callable[[AnswerMeter], None] | None" = None,
        wanted: bool = True,
    ):
        self.metrics, self.prompt_tokens, self.done, self.wanted = metrics, prompt_tokens, done, wanted
        self.times = Timings(time.monotonic())
        self.ids: list[int] = []
        self.reason: str | None = None

    def observe(self, event: Any) -> None:
        """An event has reached the event loop."""
        now = time.monotonic()
        if isinstance(event, TextDelta):
            self.times.tokens.append(now)
            self.ids.append(int(event.token[0]))
        elif isinstance(event, AudioChunk):
            self.times.sounds.append((now, event.pcm.shape[1] / SPEECH_RATE_HZ))
        elif isinstance(event, (StreamEnd, StreamError)):
            self._end(end_reason(event), now)

    def leave(self, complete: bool = False) -> None:
        """Its caller has gone; complete: with all that he wanted."""
        self._end(STOP if complete else ABORT, time.monotonic())

    def claim(self) -> None:
        """Somebody asks for it."""
        self.wanted = True
        if self.reason is not None:
            self._count()

    def _end(self, reason, now):
        if self.reason is None:
            self.reason, self.times.ended = reason, now
            if self.wanted:
                self._count()

    def _count(self):
        self.metrics.count(self.times, self.prompt_tokens, self.reason or ABORT)
        if self.done is not None:
            self.done(self)


def end_reason(event: StreamEnd | StreamError) -> str:
    """How an answer has ended, by its last event."""
    if isinstance(event, StreamError):
        return LENGTH if isinstance(event.error, CacheFull) else ERROR
    return LENGTH if event.reasons[:1] in (("length",), ("time",)) else STOP


class RequestTotals:
    """The answers of one request, summed up as they end: a socket may be open for hours."""

    def __init__(self) -> None:
        self.prompt_tokens = self.tokens = 0
        self.sound_s = 0.0
        self.running: list[AnswerMeter] = []

    def add(self, answer: AnswerMeter) -> None:
        """One that begins."""
        self.sum_up()
        self.running.append(answer)

    def sum_up(self, last: bool = False) -> None:
        """Adds those that have ended, or all."""
        ended = [answer for answer in self.running if last or answer.reason is not None]
        self.running = [answer for answer in self.running if answer not in ended]
        for answer in ended:
            if answer.wanted:
                self.prompt_tokens += answer.prompt_tokens
                self.tokens += len(answer.ids)
                self.sound_s += answer.times.sound_s


request_totals: ContextVar[RequestTotals | None] = ContextVar("request_totals", default=None)
"""Of the request that is being handled."""


def print_content(processor: Any, prompt: Any, answer: AnswerMeter) -> None:
    """A line of JSON with a prompt's ids `[T]` and an answer as text, for `--log-content`."""
    decode = processor.tokenizer.decode
    content = {
        "asked": REPEATED_PAD.sub(r"\1", decode(list(map(int, prompt)))),
        "answered": decode(answer.ids),
        "end": answer.reason,
    }
    print(json.dumps(content, ensure_ascii=False), file=sys.stderr, flush=True)


class _EngineState(Collector):
    """Gauges, read when somebody scrapes them: single numbers that the engine's thread writes."""

    def __init__(self, server: Any, labels: dict[str, str]):
        self.server, self.labels = server, labels

    def describe(self) -> list[Metric]:
        return []  # else the registry collects once when this is registered

    def collect(self) -> Iterator[Metric]:
        engine = self.server.worker.engine
        if engine is None:
            return
        scheduler = engine.scheduler
        running = sum(not row.job.prefill_only for row in [*scheduler.running])
        waiting = max(self.server.worker.pending - running, 0)
        yield self._family(GaugeMetricFamily, "vllm:num_requests_running", "Answers at work", running)
        yield self._family(GaugeMetricFamily, "vllm:num_requests_waiting", "Answers that wait for a place", waiting)
        for name, pool in zip(("vllm:kv_cache_usage_perc", "ms_omni_talker_cache_usage_perc"), scheduler.pools):
            if pool is not None:
                share = pool.used / max(pool.limit, 1)
                yield self._family(GaugeMetricFamily, name, "Share of the cache that answers use, 0 to 1", share)
        for name, text, value in (
            ("vllm:prefix_cache_queries", "Tokens of prompts that were looked for in the cache", scheduler.prompt_tokens),
            ("vllm:prefix_cache_hits", "Of these, tokens that were found", scheduler.cached_tokens),
            ("vllm:num_preemptions", "Times that an answer gave up its place for older ones", scheduler.preemptions),
        ):
            yield self._family(CounterMetricFamily, name, text, value)

    def _family(self, kind, name, text, value):
        family = kind(name, text, labels=list(self.labels))
        family.add_metric(list(self.labels.values()), value)
        return family


async def metrics(request: Request) -> Response:
    """In Prometheus' text form."""
    return Response(generate_latest(request.app.state.server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


ROUTES = [Route("/metrics", metrics)]


def merged(pages: Mapping[str, str]) -> str:
    """Prometheus text of several engines, by their names, as one page: a metric's samples stand together, as its format wants it,
    each with a label `engine`.
    """
    families: dict[str, list[str]] = {}
    for engine, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                _, _, family, *_ = line.split(" ", 3)
                known = families.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif sample := SAMPLE.fullmatch(line):
                labels = ",".join(filter(None, [f'engine="{engine}"', sample["labels"]]))
                families.setdefault(family, []).append(f"{sample['name']}{{{labels}}} {sample['value']}")
    return "".join(f"{line}\n" for lines in families.values() for line in lines)

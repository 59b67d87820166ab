"""Many callers on a server that speaks OpenAI's API, ours or another: what `serving.py` measures of an engine, from outside."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..api_client import ServerError, api_base, api_client, chunks, first_model
from .callers import Caller, Load, callers
from .chunks import note
from .listening import Answer, summary
from .metrics import combine
from .questions import question
from .session import Outcome

FAILURES_SHOWN = 3


@dataclass(frozen=True)
class Wishes:
    """url: with or without /v1; model: None for the first that the server names; count: callers of a run; rate: of a Poisson process,
    per second; at_once: so many at a time, each followed by the next when he has his answer; spoken: the share of
    answers in speech; tokens: of every answer at most (None: 16 to 48, by the seed); extra: further fields of every body.
    """

    url: str
    api_key: str | None = None
    model: str | None = None
    voice: str = "Ethan"
    count: int = 16
    rate: float | None = None
    at_once: Sequence[int] = (1,)
    spoken: float = 0.5
    tokens: int | None = None
    seed: int = 0
    repetitions: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """Where the API begins."""
        return api_base(self.url)


def measure(wishes: Wishes, say: Any) -> tuple[str, Outcome]:
    """The model's name, and the figures of `serve/N` for every N of `at_once`, or `serve/callers` at a rate.

    Raises `InputError` when nobody answers there.
    """
    return asyncio.run(_measure(wishes, say))


async def _measure(wishes, say):
    async with api_client(wishes.api_key) as client:
        model = wishes.model or await first_model(client, wishes.base)
        load = Load() if wishes.tokens is None else Load(tokens=(wishes.tokens, wishes.tokens))
        outcome = Outcome()
        for at_once in wishes.at_once if wishes.rate is None else (wishes.count,):
            wanted = callers(wishes.count, wishes.rate, wishes.spoken, wishes.seed, load)
            bodies = [{**question(caller, model, wishes.voice), **wishes.extra} for caller in wanted]
            runs = []
            for number in range(wishes.repetitions):
                say(f"{wishes.count} callers, {at_once} at a time, run {number + 1} of {wishes.repetitions}")
                answers = await run(client, wishes.base, wanted, bodies, at_once)
                runs.append(summary(answers))
                outcome.failures += _failures(answers)
            outcome.results += combine(f"serve/{at_once}", "server", runs)
    return model, outcome


async def run(
    client: httpx.AsyncClient, base: str, wanted: Sequence[Caller], bodies: Sequence[dict], at_once: int
) -> list[Answer]:
    """Every caller calls at his moment, but no more than `at_once` at a time; who has to wait calls when it is his turn."""
    turns, started = asyncio.Semaphore(at_once), time.perf_counter()

    async def call(caller, body):
        await asyncio.sleep(started + caller.at_s - time.perf_counter())
        async with turns:
            answer = Answer(time.perf_counter())
            try:
                await ask(client, base, body, answer)
            except (httpx.HTTPError, ServerError) as error:
                answer.error = error
            return answer

    return list(await asyncio.gather(*(call(*one) for one in zip(wanted, bodies))))


async def ask(client: httpx.AsyncClient, base: str, body: dict, answer: Answer) -> None:
    """One call. Raises `ServerError` and `httpx.HTTPError` for what is no whole answer."""
    async with aclosing(chunks(client, base, body)) as found:
        await note(found, answer)
    if "audio" in body and not answer.sounds:
        raise ServerError("speech was asked for, and none came")


def _failures(answers):
    """One line per kind of failure, the most frequent ones."""
    kinds: dict[str, int] = {}
    for answer in answers:
        if answer.error is not None:
            words = f"{answer.error}" or type(answer.error).__name__
            kinds[words] = kinds.get(words, 0) + 1
    ranked = sorted(kinds.items(), key=lambda item: -item[1])
    return [f"{count} calls: {words:.300}" for words, count in ranked[:FAILURES_SHOWN]]

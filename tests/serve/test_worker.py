"""The engine's thread, without an engine: places of those who ask several times."""

import asyncio

import pytest

from ms_omni.serve.errors import ApiError
from ms_omni.serve.worker import Answer, EngineThread


def test_who_asks_several_times_keeps_a_place_and_the_end_waits_for_him():
    async def check():
        worker = EngineThread(lambda: None, asyncio.get_running_loop(), 1)
        with worker.held():
            assert not worker.idle.is_set()
            answer = Answer(worker)
            worker.answers.add(answer)
            worker.forget(answer)
            assert not worker.idle.is_set(), "another question follows"
        assert worker.idle.is_set()
        worker.answers.add(Answer(worker))
        with pytest.raises(ApiError, match="1 answers are at work") as refused, worker.held():
            pass
        assert refused.value.status == 429 and refused.value.headers["Retry-After"]

    asyncio.run(check())

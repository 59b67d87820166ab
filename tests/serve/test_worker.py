"""The engine's thread, without an engine: places of those who ask several times."""

import asyncio

import pytest

from ms_omni.errors import ProcessError
from ms_omni.serve.protocol import ApiError
from ms_omni.serve.worker import Answer, EngineThread


def test_who_asks_several_times_keeps_a_place_and_the_end_waits_for_him():
    async def check():
        worker = EngineThread(lambda: None, asyncio.get_running_loop(), 1)
        with worker.reserved():
            assert not worker.idle.is_set()
            answer = Answer(worker)
            worker.answers.add(answer)
            worker.forget(answer)
            assert not worker.idle.is_set(), "another question follows"
        assert worker.idle.is_set()
        worker.answers.add(Answer(worker))
        with pytest.raises(ApiError, match="1 answers are at work") as refused, worker.reserved():
            pass
        assert refused.value.status == 429 and refused.value.headers["Retry-After"]

    asyncio.run(check())


def test_an_end_is_told_to_those_whose_turn_never_came():
    class Engine:
        def close(self):
            pass

    async def check():
        worker = EngineThread(Engine, asyncio.get_running_loop(), 4)
        worker.close()  # before what follows
        asked = [asyncio.ensure_future(worker.submit({})) for _ in range(2)]
        await asyncio.sleep(0)
        worker.start()
        for one in asked:
            with pytest.raises(ProcessError, match="the engine has stopped: the server ends"):
                await asyncio.wait_for(one, 5)
        with pytest.raises(ProcessError):
            await worker.submit({})
        assert worker.idle.is_set()

    asyncio.run(check())


def test_who_reads_ahead_takes_no_place():
    async def check():
        worker = EngineThread(lambda: None, asyncio.get_running_loop(), 1)
        worker.answers |= {Answer(worker, prefill=True) for _ in range(3)}
        assert worker.pending == 0
        with worker.reserved():
            worker.answers.add(Answer(worker))
        with pytest.raises(ApiError, match="1 answers"), worker.reserved():
            pass

    asyncio.run(check())

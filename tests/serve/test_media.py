"""Media of requests: servers that are slow hold up nobody else, and features of sounds do not depend on what else is sent."""

import asyncio
import copy
import threading
import time

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeProcessor
from ms_omni.errors import MediaError
from ms_omni.input.access import AccessPolicy
from ms_omni.serve import media
from ms_omni.serve.chat_request import MAX_MEDIA, conversation
from ms_omni.serve.media import Downloader, FeatureCache
from ms_omni.serve.protocol import ApiError, validate_body
from ms_omni.serve.schema import ChatBody
from ms_omni.serve.server import Server
from ms_omni.serve.settings import Settings
from tests.input.test_access import Server as Sender
from tests.input.test_access import ok, png
from tests.serve.conftest import MINIATURE


@pytest.fixture
def sender():
    """Sends pictures; at `/slow` a byte now and then, without an end, until the test is over."""
    sender, over = Sender("127.0.0.1"), threading.Event()

    def slow(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.wait(0.1):
            try:
                connection.sendall(b"x")
            except OSError:
                return

    sender.answers["/slow"] = slow
    yield sender
    over.set()
    sender.close()


def asked(sender, *names):
    items = [{"type": "image", "image": f"{sender.address}/{name}"} for name in names]
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *items]}]


def fetched(messages, **policy):
    async def run():
        downloader = Downloader(AccessPolicy.public(hosts=("127.0.0.1",), **policy))
        try:
            return await downloader.downloaded(messages)
        finally:
            downloader.close()

    return asyncio.run(run())


def no_more_threads(name, limit_s=5):
    ends = time.monotonic() + limit_s
    while any(one.name.startswith(name) for one in threading.enumerate()):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_addresses_become_what_they_lead_to(sender):
    messages = [{"role": "system", "content": "x"}, *asked(sender, "a", "b")]
    system, user = fetched(messages)
    assert system == messages[0] and user["content"][0] == messages[1]["content"][0]
    assert [item["image"].data for item in user["content"][1:]] == [png(), png()]
    assert isinstance(messages[1]["content"][1]["image"], str)


def test_all_downloads_have_one_deadline_and_one_limit(sender, monkeypatch):
    sender.answers["/late"] = lambda connection: (time.sleep(0.3), connection.sendall(ok(png())))
    begun = time.monotonic()
    with pytest.raises(MediaError, match="took over 1 s") as caught:
        fetched(asked(sender, *["late"] * 20), total_s=1)
    assert time.monotonic() - begun < 2 and "message 0, item" in caught.value.where
    monkeypatch.setattr(media, "MAX_DOWNLOAD_BYTES", 2 * len(png()))
    assert fetched(asked(sender, "a", "b"))
    with pytest.raises(MediaError, match="are taken at most") as caught:
        fetched(asked(sender, "a", "b", "c"))
    assert caught.value.where == "message 0, item 3 (image)"


def test_who_waits_for_slow_ones_holds_up_nobody_else(sender):
    async def run():
        server = Server(Settings("m", "m", media_hosts=("127.0.0.1",)))
        waiting = [asyncio.create_task(server.prepare(asked(sender, "slow"))) for _ in range(media.DOWNLOAD_THREADS + 4)]
        while len(sender.asked) < media.DOWNLOAD_THREADS:
            await asyncio.sleep(0.02)
        assert await asyncio.wait_for(server.in_pool(lambda _: 1), 2) == 1
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (
            len((await asyncio.wait_for(server.downloader.downloaded(asked(sender, "a")), 5))[0]["content"]) == 2
        )  # threads are free
        await server.stop()

    asyncio.run(run())
    no_more_threads("fetch")


def test_downloads_end_with_the_server(sender):
    async def run():
        downloader = Downloader(AccessPolicy.public(hosts=("127.0.0.1",)))
        waiting = asyncio.create_task(downloader.downloaded(asked(sender, "slow")))
        while not sender.asked:
            await asyncio.sleep(0.02)
        downloader.close()
        with pytest.raises(MediaError, match="nobody waits"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(run())
    no_more_threads("fetch")


def test_media_are_counted():
    def read(count):
        part = {"type": "image_url", "image_url": {"url": "https://127.0.0.1/a.png"}}
        body = validate_body({"messages": [{"role": "user", "content": [part] * count}] * 2}, ChatBody)
        return conversation(body.messages, None)

    assert len(read(MAX_MEDIA // 2)) == 2
    with pytest.raises(ApiError, match=f"{MAX_MEDIA} are taken at most") as caught:
        read(MAX_MEDIA // 2 + 1)
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.fixture(scope="module")
def processor():
    return Qwen3OmniMoeProcessor.from_pretrained(MINIATURE)


def clips(*lengths):
    return [np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32) for length in lengths]


def features(processor, sounds):
    found = processor(text="<|audio_pad|>" * len(sounds), audio=sounds)
    lengths = found["feature_attention_mask"].sum(axis=1)
    return [mel[:, :length] for mel, length in zip(found["input_features"], lengths)]


def test_a_sound_is_the_same_beside_longer_ones(processor):
    served = copy.copy(processor)
    served.feature_extractor = FeatureCache(processor.feature_extractor)
    sounds = clips(16_050, 32_000, 8_111)
    together = features(served, sounds)
    for sound, mel in zip(sounds, together):
        (alone,) = features(processor, [sound])
        assert np.array_equal(mel, alone)
    assert not np.array_equal(features(processor, sounds)[0][:, -1:], together[0][:, -1:])  # or there would be no need of it
    assert served.feature_extractor.sampling_rate == 16_000


def test_what_is_kept_is_bounded_and_shared(processor):
    calls = []

    def extractor(sounds, **options):
        calls.append(len(sounds))
        return processor.feature_extractor(sounds, **options)

    kept = FeatureCache(extractor, max_bytes=3 * 128 * 100 * 4)
    options = {"padding": True, "truncation": False, "return_attention_mask": True, "return_tensors": "np"}
    first, *others = clips(16_000, 16_001, 16_002, 16_003)
    for sounds in ([first], [first], others[:2], [first]):
        copy.deepcopy(kept)(sounds, **options)
    assert len(calls) == 3
    kept(others, **options)
    kept([first], **options)
    assert len(calls) == 5  # the third of the others, and the first again

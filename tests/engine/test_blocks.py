import gc
import random
import weakref

import pytest

from ms_omni.engine.blocks import BLOCK, CHUNK, BlockPool, ContentCache, blocks_for
from ms_omni.errors import InputError

EACH = CHUNK // BLOCK


def read(pool, keys, payload=None):
    """A row that reads full chunks with these keys, and so many blocks that it uses now."""
    blocks = [block for chunk in pool.find(keys) for block in chunk.blocks]
    known = len(blocks) // EACH
    blocks += pool.take(EACH * len(keys) - len(blocks))
    for index in range(known, len(keys)):
        pool.store(keys[index], keys[index - 1] if index else None, blocks[index * EACH : (index + 1) * EACH], payload)
    return blocks


def counts(pool):
    return pool.free, pool.cached, pool.used


def test_blocks_are_taken_and_given_back():
    pool = BlockPool(11)
    assert counts(pool) == (10, 0, 0)
    first = pool.take(3)
    assert first == [1, 2, 3] and counts(pool) == (7, 0, 3)
    assert pool.take(8) is None and counts(pool) == (7, 0, 3)
    pool.release(first)
    assert counts(pool) == (10, 0, 0) and 0 not in pool.take(10)
    with pytest.raises(AssertionError, match="more often"):
        BlockPool(4).release([1])


def test_what_exceeds_the_pool_is_refused():
    pool = BlockPool(11)
    assert pool.fitting(9 * BLOCK, BLOCK, True, "the answer") == BLOCK
    with pytest.raises(InputError, match="the answer needs 1281 tokens in the cache, which holds 1280"):
        pool.fitting(9 * BLOCK, BLOCK + 1, True, "the answer")


def test_a_limit_that_nobody_named_may_be_less():
    pool = BlockPool(11)
    assert [pool.fitting(9 * BLOCK, limit, False, "it") for limit in (7, BLOCK, 9999)] == [7, BLOCK, BLOCK]
    assert pool.fitting(1, 9999, False, "it") == 10 * BLOCK - 1
    with pytest.raises(InputError, match="it needs 1281 tokens"):
        pool.fitting(9 * BLOCK + 1, 9999, False, "it")


def test_a_payload_lives_as_long_as_its_blocks_are_known():
    """Without the help of a collector of circles, whether it is forgotten for room, with its parent, or with all others."""

    class Payload:
        pass

    gc.disable()
    try:
        for forget in (lambda pool: pool.take(12), lambda pool: pool.take(5), BlockPool.forget):
            pool, kept = BlockPool(13), []
            blocks = pool.take(12)
            for index, key in enumerate((b"a", b"b", b"c")):
                payload = Payload()
                kept.append(weakref.ref(payload))
                pool.store(key, (b"a", b"b")[index - 1] if index else None, blocks[4 * index : 4 * index + 4], payload)
            del payload
            pool.release(blocks)
            assert all(one() for one in kept)
            forget(pool)
            assert sum(one() is not None for one in kept) == pool.cached // 4
    finally:
        gc.enable()


def test_chunks_are_found_again_and_shared():
    pool = BlockPool(21)
    first = read(pool, "ab", "hidden rows")
    assert counts(pool) == (12, 0, 8)
    second = read(pool, "abc")
    assert second[:8] == first and counts(pool) == (8, 0, 12)
    assert [chunk.payload for chunk in pool.find("abc")] == ["hidden rows", "hidden rows", None]
    pool.release(second)
    pool.release(first)
    assert counts(pool) == (8, 0, 12)  # there was a third user
    pool.release(second)
    assert counts(pool) == (8, 12, 0)
    assert pool.find("xb") == [] and len(pool.find("axc")) == 1


def test_what_was_not_used_for_the_longest_time_is_forgotten_from_the_end():
    pool = BlockPool(21)
    pool.release(read(pool, "ab"))
    pool.release(read(pool, "xy"))
    pool.release(read(pool, "ab"))
    assert counts(pool) == (4, 16, 0)
    pool.take(8)
    assert [len(pool.find(keys)) for keys in ("xy", "ab")] == [1, 2]
    assert pool.take(5) is None  # all that is left is used


def test_with_a_chunk_all_that_follow_it_are_forgotten():
    pool = BlockPool(13)
    early, late = pool.take(4), pool.take(8)
    pool.store("a", None, early)
    pool.store("a", None, late[:4])  # the first is remembered
    pool.store("b", "a", late[4:])
    pool.release(early)
    assert counts(pool) == (0, 4, 8)
    assert pool.take(4) == early[:4] and pool.find("ab") == [] and counts(pool) == (0, 0, 12)
    pool.release(late)
    assert counts(pool) == (8, 0, 4)  # not cached: nobody could find it
    pool.store("c", "b", early)
    assert pool.find("abc") == []
    pool.release(early)
    assert counts(pool) == (12, 0, 0)


def test_unused_followers_are_free_at_once():
    pool = BlockPool(17)
    early, late = pool.take(4), pool.take(8)
    pool.store("a", None, early)
    pool.store("b", "a", late[4:])
    pool.release(early)
    pool.release(late)
    assert counts(pool) == (8, 8, 0)
    assert len(pool.take(9)) == 9 and counts(pool) == (7, 0, 9)


@pytest.mark.parametrize("seed", range(20))
def test_counts_add_up(seed):
    draw, pool = random.Random(seed), BlockPool(41)
    users = []
    for _ in range(400):
        if users and draw.random() < 0.5:
            pool.release(users.pop(draw.randrange(len(users))))
        else:
            keys = [(draw.choice("ab"), draw.randrange(2), depth) for depth in range(draw.randint(0, 3))]
            keys = [tuple(keys[: depth + 1]) for depth in range(len(keys))]
            if EACH * len(keys) <= pool.free + pool.cached:
                users.append(read(pool, keys))
        held = {block for blocks in users for block in blocks}
        assert pool.used == len(held) and pool.free + pool.cached + pool.used == pool.capacity
    for blocks in users:
        pool.release(blocks)
    assert pool.used == 0 and len(pool.take(40)) == len(set(range(1, 41)))


def test_blocks_for():
    assert [blocks_for(tokens) for tokens in (0, 1, 128, 129, 512)] == [0, 1, 1, 2, 4]


def test_a_pool_that_grows():
    """At least twice as large when it has to be, up to its limit; what is cached goes first."""
    pool = BlockPool(5, 21)
    assert (pool.capacity, pool.limit, pool.available) == (4, 20, 20)
    first = pool.take(4)
    assert pool.capacity == 4
    pool.store(b"a", None, first)
    pool.release(first)
    assert pool.take(3) and pool.capacity == 4 and pool.cached == 0
    assert len(set(pool.take(2))) == 2 and pool.capacity == 8
    assert len(set(pool.take(15))) == 15 and pool.capacity == 20 and pool.take(1) is None
    with pytest.raises(InputError, match="holds 2560"):
        pool.fitting(2000, 561, True, "an answer")


def test_what_is_forgotten_is_not_found():
    pool = BlockPool(13)
    used, left = pool.take(4), pool.take(4)
    pool.store(b"a", None, used)
    pool.store(b"b", b"a", left)
    pool.release(left)
    pool.forget()
    assert pool.find([b"a", b"b"]) == [] and (pool.free, pool.cached, pool.used) == (8, 0, 4)
    pool.release(used)
    assert pool.free == 12


def test_content_is_kept_within_its_budget():
    cache = ContentCache(100)
    for key in "abc":
        cache.put(key, key.upper(), 40)
    assert cache.get("a") is None and cache.get("b") == "B" and cache.size == 80
    cache.put("d", "D", 40)
    assert cache.get("c") is None and cache.get("b") == "B"
    cache.put("b", "bigger", 100)
    assert cache.get("b") == "bigger" and cache.get("d") is None and cache.size == 100
    cache.put("b", "too big", 101)
    assert cache.get("b") is None and cache.size == 0

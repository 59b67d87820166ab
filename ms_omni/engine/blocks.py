"""Which block of a cache belongs to whom, and what of it can be found again.

    prompt   |<------- chunk 0 ------->|<------- chunk 1 ------->|<- rest ->|     a chunk, here 512 tokens, is read in one launch
    blocks   |  1  |  2  |  3  |  4  |  5  |  6  |  7  |  8  |  9  |              a block holds 128 tokens
    keys     hash(what was read)       hash(key of chunk 0, what was read)

A block is free, used (by one row or by several that read the same), or cached: no row uses it, but it holds a chunk that may be
found again. All of this is book-keeping over numbers; the keys and values themselves are somewhere else.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ..errors import CacheFull, InputError
from ..modeling import BLOCK_TOKENS as BLOCK

CHUNK = 512
"""Tokens of a prompt that are read at a time, from a multiple of as many on, where prefill_tokens is not given."""
SCRATCH = 0
"""The block that rows write to which only pad a launch."""


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-tokens // BLOCK)


def cache_full(what: str, prompt: int, count: int, option: str) -> CacheFull:
    """Of an answer without a named limit that has filled a whole cache alone."""
    return CacheFull(
        f"{what} was cut off after {count}: with the {prompt} tokens of its prompt they fill the engine's cache, which holds "
        f"{prompt + count}. Name a limit that fits, {option}={count} or less, or make an engine with more: model.engine(tokens=...)"
    )


@dataclass(eq=False)
class Chunk:
    """A chunk that was read: its blocks, and a payload that belongs to it. children: those that were read behind it.

    A payload lives as long as its blocks are indexed, or a row that found it uses them; so all payloads together are bounded by the
    blocks of the pool. See `runner.talker_state_bytes` for their size.
    """

    key: bytes
    parent: "Chunk | None"
    blocks: tuple[int, ...]
    payload: Any
    children: "set[Chunk]" = field(default_factory=set)


class BlockPool:
    """The blocks 1 .. blocks - 1 of a cache. `free + cached + used == capacity` at any time.

    limit: the pool may grow up to so many blocks, by a factor of two at least each time.
    """

    def __init__(self, blocks: int, limit: int = 0) -> None:
        self.capacity = blocks - 1
        self.limit = max(limit - 1, self.capacity)
        self._free = list(range(blocks - 1, SCRATCH, -1))  # the end is given out first
        self._users = [0] * blocks
        self._chunks: dict[bytes, Chunk] = {}
        self._chunk_of: dict[int, Chunk] = {}
        self._unused: OrderedDict[bytes, Chunk] = OrderedDict()  # the least recently used first
        self._cached = 0

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that no row uses and that hold a chunk."""
        return self._cached

    @property
    def used(self) -> int:
        """Blocks that rows use; one that several rows use counts once."""
        return self.capacity - self.free - self.cached

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return self.free + self.cached + self.limit - self.capacity

    def fitting(self, prompt: int, limit: int, named: bool, what: str) -> int:
        """How many of `limit` tokens fit behind a prompt in an empty cache. Raises `InputError` where that are not all of a
        limit that was given, and of a default not even a block of them.
        """
        least = prompt + (limit if named else min(limit, BLOCK))
        if blocks_for(least) > self.limit:
            raise InputError(
                f"{what} needs {least} tokens in the cache, which holds {self.limit * BLOCK}; make the prompt shorter, "
                "allow fewer new tokens, or give the engine a larger cache"
            )
        return min(limit, self.limit * BLOCK - prompt)

    def take(self, count: int) -> list[int] | None:
        """So many blocks for one user; None, with nothing changed, where there are not as many. The least recently used chunks are
        forgotten for it.
        """
        if count > self.available:
            return None
        self._grow(count - self.free - self.cached)
        while count > self.free:
            self._forget(next(iter(self._unused.values())))
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._users[block] = 1
        return blocks

    def _grow(self, missing: int) -> None:
        if missing > 0:
            before, self.capacity = self.capacity, min(max(self.capacity + missing, 2 * self.capacity), self.limit)
            self._free[:0] = range(self.capacity, before, -1)
            self._users += [0] * (self.capacity - before)

    def forget(self) -> None:
        """Forgets all chunks: nothing of them is to be found any more."""
        for chunk in [chunk for chunk in self._chunks.values() if chunk.parent is None]:
            self._forget(chunk)

    def known(self, keys: Iterable[bytes]) -> int:
        """How many of these keys, from the first on, `find` would find."""
        return sum(1 for _ in takewhile(self._chunks.__contains__, keys))

    def find(self, keys: Sequence[bytes]) -> list[Chunk]:
        """The chunks with these keys, as far as they are known in a row, with one user more."""
        found = [self._chunks[key] for key in keys[: self.known(keys)]]
        for chunk in found:
            self._reuse(chunk)
            for block in chunk.blocks:
                self._users[block] += 1
        return found

    def store(self, key: bytes, parent: bytes | None, blocks: Sequence[int], payload: Any = None) -> None:
        """Indexes a chunk that was read into blocks which the caller uses; parent: the key of the chunk before it.

        Of two rows that read the same at the same time the first one's is indexed. A chunk whose parent is gone cannot be found.
        """
        before = self._chunks.get(parent) if parent is not None else None
        if key in self._chunks or (parent is not None and before is None):
            return
        chunk = self._chunks[key] = Chunk(key, before, tuple(blocks), payload)
        self._chunk_of.update(dict.fromkeys(blocks, chunk))
        if before is not None:
            before.children.add(chunk)

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up what `take` and `find` gave, in the order of the tokens: of a prompt the end is forgotten first."""
        for block in reversed(blocks):
            assert self._users[block] > 0, f"block {block} is released more often than taken"
            self._users[block] -= 1
            if self._users[block]:
                continue
            chunk = self._chunk_of.get(block)
            if chunk is None:
                self._free.append(block)
            elif block == chunk.blocks[0]:  # the last of the chunk to be released
                self._unused[chunk.key] = chunk
                self._cached += len(chunk.blocks)

    def _reuse(self, chunk: Chunk) -> bool:
        """Takes a chunk from those that no row uses; returns whether it was one."""
        if self._unused.pop(chunk.key, None) is None:
            return False
        self._cached -= len(chunk.blocks)
        return True

    def _forget(self, chunk: Chunk) -> None:
        """Takes a chunk out of the index, and all that could only be found behind it."""
        if chunk.parent is not None:
            chunk.parent.children.discard(chunk)
        chunks = [chunk]
        while chunks:
            chunk = chunks.pop()
            chunks += chunk.children
            chunk.children.clear()  # a cycle of references would hold the payload longer
            del self._chunks[chunk.key]
            for block in chunk.blocks:
                del self._chunk_of[block]
            if self._reuse(chunk):
                self._free += reversed(chunk.blocks)


class ContentCache:
    """Values by a hash of the content that they were computed from, as many bytes of them as the budget allows; what was not asked
    for the longest time goes first.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.size = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """size: bytes of the value; one that exceeds the whole budget is not stored."""
        self.size -= self._entries.pop(key, (None, 0))[1]
        if size > self.budget:
            return
        self._entries[key] = value, size
        self.size += size
        while self.size > self.budget:
            self.size -= self._entries.popitem(last=False)[1][1]

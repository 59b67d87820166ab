"""The thinker's launches: media, chunks of prompts, and one token for many rows."""

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
from mindspore import Tensor

from ..arrays import HostArray
from ..modeling import ops
from ..modeling.decoder import Decoder
from ..modeling.encoder import Encoder
from ..modeling.ops import dispatch
from ..modeling.packing import host_array
from ..modeling.prefill import Deepstack
from ..modeling.steps import COMPILE_AFTER, LAUNCH_ROWS
from .blocks import BLOCK, ContentCache
from .choice import Chooser, Scores
from .kv_pool import KVPool, PoolStep
from .sequence import Sequence

CHUNK_STEP = 16


def talker_state_bytes(decoder: Decoder) -> int:
    """Memory of the states for the talker of a block, which are stored beside its keys and values: embeddings and hidden states `[BLOCK, D]`.

    At the published sizes (D = 2048, bfloat16) that is 1 MiB of a block and 4 MiB of a chunk of 512 tokens, beside 48 MiB of keys
    and values (48 layers, 4 heads of 128).
    """
    return 2 * BLOCK * decoder.config.hidden_size * decoder.norm.itemsize


class ThinkerRunner:
    """thinker: the model's; pool: its keys and values; features: of pieces of media, by their digests; accept_hidden_layer: the number of the
    layer whose states the talker reads, or None; rows: of a launch, at most.
    """

    def __init__(
        self,
        thinker: Any,
        pool: KVPool,
        features: ContentCache,
        accept_hidden_layer: int | None = None,
        compile_after: int | None = COMPILE_AFTER,
        rows: int = LAUNCH_ROWS,
    ) -> None:
        self.thinker, self.pool, self.features, self.accept_hidden_layer = thinker, pool, features, accept_hidden_layer
        self.step = PoolStep(thinker.model, thinker.output_layer, pool, compile_after)
        self.chooser = Chooser(thinker.output_layer, rows)

    def warm(self, rows: int) -> None:
        """Makes the graphs for so many rows, where weights are packed, and those that choose."""
        self.step.warm(rows)
        self.chooser.warm([rows])

    def encode(self, row: Sequence, number: int) -> None:
        """A call of an encoder of the prompt: `(features [n, D], those of the deepstack layers [[n, D], ...])`."""
        call = row.prompt.calls[number]
        found = self.features.get(call.digest)
        if found is None:
            found = self._encoded(call)
            self.features.put(call.digest, found, sum(part.size * part.itemsize for part in (found[0], *found[1])))
        row.features[number] = found

    def _encoded(self, call):
        kind, content = call.medium.kind, call.content
        if kind == "audio":
            mel, *before = content
            lengths = [frames.shape[1] for frames in (*before, mel)]
            found = self.thinker.get_audio_features(np.concatenate([*before, mel], axis=1), audio_feature_lengths=lengths)
            return found[-len(call.indices) :] if before else found, []
        encode = self.thinker.get_image_features if kind == "image" else self.thinker.get_video_features
        return encode(*content)

    def read(self, row: Sequence, start: int, stop: int) -> tuple[Scores | None, Any]:
        """Reads a chunk of the prompt -> what the token behind the whole prompt is chosen by, where one is to be chosen; and the
        states for the talker, `(embeddings, hidden states)`, each `[n, D]`, or None.
        """
        count, size = stop - start, chunk_size(stop - start)
        x, inject = self._rows(row, start, stop, size)
        positions = np.zeros((3, 1, size), np.float32)
        positions[:, 0, :count] = row.prompt.positions[:, start:stop]
        states: dict[int, Tensor] = {}
        rope = self.thinker.model.rope(positions)
        layer = self.accept_hidden_layer
        wanted = None if row.text.options.output_hidden_states else () if layer is None else (0, layer)
        found = states.__setitem__
        hidden = self.pool.read_chunk(self.thinker.model, x, rope, start, count, row.table, inject, found, wanted)
        talker_states = None if layer is None else (states[0][0, :count], states[layer][0, :count])
        self._store_hidden_states(row, states, hidden, count)
        first = stop == len(row.prompt) and not (row.given or row.prefill_only or row.text.tokens)
        return self._scores([row], self.thinker.logits(hidden[:, count - 1 : count]))[0] if first else None, talker_states

    def _scores(self, rows, logits):
        """What each row's next token is chosen by, by logits `[B, 1, V]`; nothing of a row that is still reading what it wrote."""
        due = [row.text.sampler if row.choosing else None for row in rows]
        return self.chooser(due, logits, [index for index, row in enumerate(rows) if row.text.options.whole_logits])

    def _store_hidden_states(self, row, states, hidden, count):
        """Stores the states of all layers `[1, count, D]` where they are asked for; the last are those after the final norm."""
        if row.text.options.output_hidden_states:
            layers = [states[layer] for layer in range(len(self.thinker.model.layers))] + [hidden]
            row.hidden_states.append(tuple(HostArray.of(host_array(layer)[:, :count]) for layer in layers))

    def _rows(self, row, start, stop, size):
        """Embeddings `[1, size, D]` of a chunk, features in the place of placeholders, and what the deepstack adds, or None."""
        prompt, count = row.prompt, stop - start
        if prompt.embeds is not None:
            padded = np.zeros((1, size, prompt.embeds.shape[1]), np.float32)
            padded[0, :count] = prompt.embeds[start:stop]
            return Tensor(padded).astype(self.thinker.dtype), None
        ids = np.zeros((1, size), np.int64)
        ids[0, :count] = prompt.ids[start:stop]
        x, deepstack = self.thinker.embed_text(ids), []
        rows = x.reshape(size, -1)
        for number, call in enumerate(prompt.calls):
            inside = np.flatnonzero((call.indices >= start) & (call.indices < stop)).astype(np.int32)
            if not len(inside):
                continue
            features, layers = row.features[number]
            indices, index = (call.indices[inside] - start).astype(np.int32), Tensor(inside)
            rows = ops.scatter_rows(rows, Tensor(indices), ops.gather_rows(features, index).astype(rows.dtype))
            if layers:
                deepstack.append((indices, [ops.gather_rows(layer, index) for layer in layers]))
        inject = Deepstack(deepstack, size).between(0, size) if deepstack else None
        return rows.reshape(x.shape), inject

    def decode(self, rows: Rows[Sequence]) -> list[Scores | None]:
        """Each row's next token is read -> what the one behind it is chosen by."""
        observed = [row for row in rows if row.text.options.output_hidden_states]
        if observed:
            others = [row for row in rows if not row.text.options.output_hidden_states]
            found = dict(zip(map(id, others), self.decode(others) if others else ()))
            return [found[id(row)] if id(row) in found else self._observed_step(row) for row in rows]
        most = self.step.most
        if most is not None and len(rows) > most:
            return self.decode(rows[:most]) + self.decode(rows[most:])
        size = self.step.size(len(rows))
        ids, positions = np.zeros((size, 1), np.int64), np.zeros((3, size, 1), np.float32)
        for index, row in enumerate(rows):
            ids[index], positions[:, index] = row.next_token(), row.position()
        tables, lengths = step_tables(self.pool, [row.table for row in rows], [row.read for row in rows], size)
        logits, _ = self.step(self.thinker.embed_text(ids), self.thinker.model.rope(positions), tables, lengths)
        return self._scores(rows, logits)

    def _observed_step(self, row):
        """The same for one row through the cells, whose states can be observed."""
        states: dict[int, Tensor] = {}
        rope = self.thinker.model.rope(np.full((3, 1, 1), row.position(), np.float32))
        x, start, table = self.thinker.embed_text(np.array([[row.next_token()]])), row.read, row.table
        hidden = self.pool.read_chunk(self.thinker.model, x, rope, start, 1, table, None, states.__setitem__)
        self._store_hidden_states(row, states, hidden, 1)
        return self._scores([row], self.thinker.logits(hidden[:, :1]))[0]


def step_tables(pool: KVPool, tables: Rows[Rows[int]], read: Rows[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables int32 `[size, n]` and lengths int32 `[size]` of rows with these blocks, of which so many positions were read, that
    read one more; what pads them is in block 0.
    """
    padding = size - len(read)
    lengths = [count + 1 for count in read] + [1] * padding
    return pool.tables([*tables, *[[0]] * padding], lengths), np.array(lengths, np.int32)


def chunk_size(count: int) -> int:
    """Positions of the launch that reads so many tokens of a prompt: few sizes, of which the next is not much larger."""
    return -(-count // CHUNK_STEP) * CHUNK_STEP


class Weights:
    """Those of some cells as they are now, where they are used (see `ops.place`); whatever packs them is prepared before.

    `changed` notices cells and parameters that were exchanged, values that were set, and training; not a value that was assigned
    in its place, which leaves no trace.
    """

    def __init__(self, cells: Iterable[Any]) -> None:
        cells, self.tables = list(cells), []
        while cells:
            cell = cells.pop()
            if isinstance(cell, Encoder):
                cell.ready()
            self.tables += [cell._params, cell._cells]
            cells += [part for part in cell._cells.values() if part is not None]
        self.parts = [part for table in self.tables for part in table.values()]  # held, so that their ids stay theirs
        self.parameters = [part for table in self.tables[::2] for part in table.values() if part is not None]
        ops.place(self.parameters)
        self.state = self._state()

    def changed(self) -> bool:
        """Whether they are others by now."""
        return self._state() != self.state

    def _state(self):
        ids = [id(part) for table in self.tables for part in table.values()]
        return ids, [parameter.data_ptr() for parameter in self.parameters], ops.Recorded.calls, dispatch.implementation()

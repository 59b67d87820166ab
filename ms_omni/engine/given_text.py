"""`talker.generate` as in transformers: codes of a text that is known, from rows that the caller has computed."""

from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Tensor

from ..arrays import HostArray
from ..errors import InputError
from ..generation.checks import check, take_neutral, truth
from ..generation.request import PREDICTOR_DEFAULTS, SpeechParams, sampling_params
from ..generation.sampling import fresh_seed
from ..generation.talker_prompt import TalkerContext
from ..locking import exclusive
from ..modeling.forward import counted_positions, given_embeddings, given_tensor
from ..modeling.packing import host_array, valid_tokens
from ..outputs import GenerateOutput
from .blocks import BlockPool, blocks_for
from .kv_pool import KVPool
from .plan import Facts, Job, Speech
from .ranks import ranks_of
from .scheduler import Scheduler
from .speech import SpeechSequence, SpeechStage

INPUTS = ("talker_input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "video_second_per_grid")
UNUSED = ("use_audio_in_video", "audio_feature_lengths", "use_cache")
"""The tokens show the first two, and there is always a cache."""
ALL = 2**31 - 1
"""Frames of a piece that no speech has."""


def generate_codes(talker: Any, embeds: Any, trailing: Any, pad: Any, kwargs: dict) -> Any:
    """Codes 0 int64 `[B, n]` of all draws, or a `GenerateOutput` whose hidden_states hold, per draw, the last hidden state
    `([B, S, D],)` and the codes int64 `[B, Q]` of the frame before, None for the first.

    embeds `[B, S, D]`: the talker's prompt; trailing `[B, n, D]`: text rows, one per frame; pad `[B or 1, 1, D]`: the row when
    they are used up. Raises `InputError`.
    """
    for name, value in (("inputs_embeds", embeds), ("trailing_text_hidden", trailing), ("tts_pad_embed", pad)):
        if value is None:
            raise InputError(f"talker.generate needs {name}; to speak what the thinker writes use model.generate")
    inputs = {name: kwargs.pop(name, None) for name in INPUTS}
    for name in UNUSED:
        value = kwargs.pop(name, None)
        if value is not None and name != "audio_feature_lengths":
            check(name, value)
    flags = {
        name: truth(name, kwargs.pop(name, None) or False) for name in ("return_dict_in_generate", "output_hidden_states")
    }
    take_neutral(kwargs, "talker.generate")
    defaults = {"top_k": 50, "eos_token_id": talker.config.codec_eos_token_id}
    params = sampling_params(kwargs, "generate", **defaults)
    params.check_vocabulary(talker.config.text_config.vocab_size)
    ranks = ranks_of(None, talker)
    if params.needs_seed:
        params = replace(params, seed=ranks.broadcast([fresh_seed()])[0])
    rest = sampling_params({}, "predictor", **PREDICTOR_DEFAULTS, do_sample=params.do_sample, seed=params.seed)
    x = host_array(given_embeddings(talker.model, embeds))
    batch, length, width = x.shape
    valid, positions, following = _positions(talker, (batch, length), inputs)
    rows = host_array(given_tensor(trailing, "trailing_text_hidden", (batch, "frames", width)))
    silent = host_array(given_tensor(pad, "tts_pad_embed", (len(pad) if len(pad) == 1 else batch, 1, width)))
    silent = np.broadcast_to(silent, (batch, 1, width))
    speech = SpeechParams(0, params, rest)
    sequences = [GivenSpeechSequence(speech, row, np.concatenate((rows[row], silent[row]))) for row in range(batch)]
    for sequence, line, mask, at, after in zip(sequences, x, valid, positions.transpose(1, 0, 2), following):
        sequence.rows = Tensor(line[mask]).astype(talker.dtype)
        sequence.context = TalkerContext(None, None, np.zeros(0, bool), np.ascontiguousarray(at[:, mask]), after)
    _speak(talker, sequences, ranks)
    return _result(sequences, length, params.pad_id, flags)


def _positions(talker, shape, inputs):
    """Which rows are no padding `[B, S]`, positions `[3, B, S]`, and those that follow `[B]`."""
    valid = valid_tokens(shape, inputs["attention_mask"])
    if valid.shape != shape or not valid[:, -1].all():
        raise InputError(f"attention_mask has shape {list(valid.shape)}, expected {list(shape)}, padded on the left")
    ids = inputs.pop("talker_input_ids")
    if ids is None:
        positions, deltas = counted_positions(valid), np.zeros((len(valid), 1), np.float32)
    else:
        positions, deltas = talker.rope_index(ids, valid, *(inputs[name] for name in INPUTS[2:]))
    positions = np.broadcast_to(positions, (3, *shape)).astype(np.float32)
    return valid, positions, (deltas[:, 0] + valid.sum(axis=1)).astype(np.float32)


class GivenSpeechSequence(SpeechSequence):
    """One whose text is there as rows `[n, D]` of the talker, one per frame, the last one for all that follow; states
    `[1, n, D]`: the hidden states behind all that was read.
    """

    def __init__(self, params: SpeechParams, row: int, text: np.ndarray) -> None:
        super().__init__(params, row, None)
        self.text, self.states = text, []

    def next_row(self) -> np.ndarray:
        """The text row of the next frame."""
        return self.text[min(self.steps_read, len(self.text)) - 1]


class GivenSpeechStage(SpeechStage):
    """A stage without a vocoder."""

    def _text_rows(self, sequences, size):
        rows = np.stack([sequence.next_row() for sequence in sequences] + [sequences[0].text[-1]] * (size - len(sequences)))
        return Tensor(rows[:, None]).astype(self.talker.dtype)

    def read(self, sequence: GivenSpeechSequence, start: int, stop: int) -> Tensor:
        hidden = super().read(sequence, start, stop)
        sequence.states.append(host_array(hidden)[:, : stop - start])
        return hidden

    def _predict(self, sequences, codes, hidden):
        for sequence, state in zip(sequences, host_array(hidden)):
            sequence.states.append(state[None])
        super()._predict(sequences, codes, hidden)

    @staticmethod
    def sound(sequence: SpeechSequence, frames: int) -> None:
        return None


def _speak(talker, sequences, ranks):
    """All of them to their ends. Raises what went wrong."""
    lengths = [sequence.rows.shape[0] for sequence in sequences]
    limit = sequences[0].params.talker.max_new_tokens
    blocks = sum(blocks_for(length + limit) for length in lengths)
    pool = BlockPool(min(blocks, len(sequences)) + 1, blocks + 1)
    scheduler = Scheduler(BlockPool(1), pool, max_rows=len(sequences))
    stage = GivenSpeechStage(
        talker, None, np.zeros((3, 0)), KVPool.of(talker.model, pool.capacity + 1), talker.compile_after, ranks.codes
    )
    for sequence, length in zip(sequences, lengths):
        id = scheduler.add(Job(0, 0, speech=Speech(length, limit, (ALL,))))
        scheduler.add_text(id, limit, True)
        stage.sequences[id] = sequence
    while scheduler.rows:
        with exclusive, ranks.synchronized():
            plan = scheduler.plan()
            stage.pool.reserve(pool.capacity + 1)
            stage.apply_blocks(plan)
            output = stage.execute(plan)
            for error in output.failed.values():
                raise error
            scheduler.done(plan, Facts(speech_ended=frozenset(output.ended)))


def _result(sequences, width, pad, flags):
    steps = range(max(len(sequence.drawn) for sequence in sequences))
    tokens = np.array(
        [[sequence.drawn[step] if step < len(sequence.drawn) else pad for step in steps] for sequence in sequences], np.int64
    )
    ids = HostArray.of(tokens)
    if not flags["return_dict_in_generate"]:
        return ids
    states = tuple(((_state(sequences, step, width),), _codes(sequences, step, tokens)) for step in steps)
    return GenerateOutput(ids, hidden_states=states if flags["output_hidden_states"] else None)


def _state(sequences, step, width):
    """Those that a code was drawn from, `[B, S, D]`; zeros for padding, and for rows that had ended."""
    found = []
    for sequence in sequences:
        chunks = len(sequence.states) - len(sequence.drawn) + 1
        parts = sequence.states[:chunks] if step == 0 else sequence.states[chunks + step - 1 : chunks + step]
        found.append(np.concatenate(parts, axis=1)[0] if parts else np.zeros((0, sequence.states[0].shape[2]), np.float32))
    length = width if step == 0 else 1
    return HostArray.of(np.stack([np.pad(state, ((length - len(state), 0), (0, 0))) for state in found]))


def _codes(sequences, step, tokens):
    """Of the frame before, int64 `[B, Q]`."""
    if step == 0:
        return None
    groups = next(len(sequence.codes[0]) for sequence in sequences if sequence.codes)
    rows = [
        sequence.codes[step - 1][1:] if step <= len(sequence.codes) else np.zeros(groups - 1, np.int64)
        for sequence in sequences
    ]
    return HostArray.of(np.concatenate([tokens[:, step - 1 : step], np.stack(rows)], axis=1))

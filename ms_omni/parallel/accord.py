"""What ranks that generate together agree on: every choice is rank 0's, and so is when to stop.

All ranks run the same loops. Where a loop looks at data to decide something (a sampled token, a stopping string, codes of
a frame), rank 0's decision is broadcast, so that the ranks' collectives stay in step even if their arithmetic differs in
a bit or their user stops them at different times.
"""

import hashlib
import signal
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..generation.accord import Alone
from ..generation.sampling import fresh_seed
from ..locking import exclusive
from . import watch

GO, CLOSED, INTERRUPTED = 0, 1, 2
DIGEST_BYTES = 16


class Accord(Alone):
    """The accord of one rank; comm: `Collectives`, vocabulary: `SplitVocabulary`, or None where the head is whole."""

    def __init__(self, comm, vocabulary=None):
        self.comm = comm
        self.leads = comm.rank == 0
        self.vocabulary = vocabulary
        self.interrupts = Interrupts()
        self.threads = []  # of the iterators that are open

    def begin(self, *request):
        self._check_thread()
        with self._together():
            said = digest(request) + bytes([INTERRUPTED if self.interrupts.pending else GO])
            everyone = self.comm.gather_array(np.frombuffer(said, np.uint8))
        if everyone[0][-1] == INTERRUPTED:
            self.interrupts.act()
        others = [rank for rank in range(self.comm.size) if (everyone[rank] != everyone[0])[:-1].any()]
        if others:
            raise InputError(
                f"ranks {others} were asked something else than rank 0; run the same script with the same "
                "inputs and arguments on every rank"
            )

    def params(self, params):
        if params.seed is not None or not params.do_sample:
            return params
        return replace(params, seed=int(self.agree(np.array([fresh_seed()]))[0]))

    def adjusted(self, sampler, logits, split):
        if split and self.vocabulary is not None:
            return self.vocabulary.scores(sampler, logits)
        return sampler.adjust(logits)

    def whole(self, logits):
        return logits if self.vocabulary is None else self.vocabulary.whole(logits)

    def agree(self, array):
        array = np.ascontiguousarray(array)
        state = INTERRUPTED if self.interrupts.pending else GO
        message = np.frombuffer(bytes([state, 0, 0, 0]) + array.tobytes(), np.uint8)
        message = self.comm.broadcast_array(message)
        if message[0] == INTERRUPTED:
            self.interrupts.act()
        return message[4:].view(array.dtype).reshape(array.shape)

    def share(self, tensor):
        return self.comm.broadcast(tensor)

    def turns(self, source):
        """What `source` yields. Between two items rank 0 tells the others whether it goes on.

        Rank 0 closing the iterator ends it on all ranks; another rank that closes it early works on in silence until
        rank 0 is done, because the others need its part. An interruption (SIGINT) waits for a moment when no collective
        is under way and then ends the iterator everywhere, with KeyboardInterrupt.
        """
        self._check_thread()
        thread = threading.get_ident()
        self.threads.append(thread)
        try:
            while True:
                with self._together():
                    item = next(source, self)
                if item is self:
                    break
                try:
                    yield item
                except BaseException as error:  # GeneratorExit, or what the caller throws in
                    self._leave(source, error)
                    raise
                with self._together():
                    state = self._tell(INTERRUPTED if self.interrupts.pending else GO)
                if state == INTERRUPTED:
                    self.interrupts.act()
                if state != GO:
                    break
            if self.interrupts.pending:
                self.interrupts.act()
        finally:
            self.threads.remove(thread)
            with exclusive:
                source.close()

    @contextmanager
    def _together(self):
        """Around collectives: one thread at a time, and an interruption waits."""
        with exclusive, self.interrupts.held(), watch.busy():
            yield

    def _check_thread(self):
        if any(thread != threading.get_ident() for thread in self.threads):
            raise InputError(
                "a model that several processes hold together is asked by one thread at a time, so that all processes take "
                "the requests in the same order; another thread's request is under way"
            )

    def _tell(self, state):
        return int(self.comm.broadcast_array(np.array([state], np.int32))[0])

    def _leave(self, source, error):
        """This rank stops listening: rank 0 tells the others, another rank keeps them company until rank 0 is done."""
        with self._together():
            if self.leads:
                self._tell(CLOSED if isinstance(error, GeneratorExit) else INTERRUPTED)
                return
            while self._tell(GO) == GO:
                if next(source, self) is self:
                    return


class Interrupts:
    """SIGINT, held back while collectives may be under way. pending: whether one came meanwhile.

    So is SIGTERM: once a graph has been compiled, MindSpore's own handler of SIGINT may be in force, now and then, and all that
    it does is to send SIGTERM (see `modeling/interruption.py`). Who means it sends SIGKILL afterwards, as the watch does.
    """

    def __init__(self):
        self.pending = False

    @contextmanager
    def held(self):
        """Inside this context an interruption is noted and nothing else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        if None in before.values() or before[signal.SIGINT] == self._note:  # not from Python, or held already
            yield
            return
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():  # SIGINT last: its handler may raise
                signal.signal(number, handler)

    def act(self):
        """Raises what was held back."""
        self.pending = False
        raise KeyboardInterrupt

    def _note(self, *_):
        self.pending = True


def digest(request):
    """A fingerprint of nested arguments: arrays by content, everything else by what it prints."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _feed(state, request)
    return state.digest()


def _feed(state, value):
    if isinstance(value, dict):
        for key in sorted(value):
            state.update(f"{key}:".encode())
            _feed(state, value[key])
    elif isinstance(value, (tuple, list)):
        state.update(f"({len(value)}".encode())
        for item in value:
            _feed(state, item)
    elif hasattr(value, "asnumpy"):
        _feed(state, np.asarray(value.asnumpy()))
    elif isinstance(value, np.ndarray):
        state.update(f"{value.dtype}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).view(np.ndarray).reshape(-1).view(np.uint8))
    else:
        state.update(repr(value).encode())

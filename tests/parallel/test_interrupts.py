"""An interruption waits until no collective is under way."""

import os
import signal

import pytest

from ms_omni.parallel.mesh import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_noted_while_held_and_raised_afterwards(number):
    """SIGTERM is what MindSpore makes of SIGINT."""
    interrupts, before = Interrupts(), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with interrupts.held():
        with interrupts.held():
            os.kill(os.getpid(), number)
        assert interrupts.pending
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        interrupts.act()
    assert not interrupts.pending

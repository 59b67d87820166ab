import pytest


@pytest.fixture(scope="session")
def processor(tiny_checkpoint):
    from ms_omni import Qwen3OmniMoeProcessor

    return Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def world():
    """The miniature and its callers."""
    from tests.engine.callers import World

    return World()

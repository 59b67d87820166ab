"""What a server's cache keeps reaches its engine, and what this device does not have is said before a model is loaded."""

import argparse

import pytest

from ms_omni.commands.options import add_engine, add_limits, add_model, engine_settings
from ms_omni.errors import InputError
from ms_omni.serve import server
from tests.engine.callers import MINIATURE


def settings(*arguments):
    parser = argparse.ArgumentParser()
    add_model(parser)
    add_limits(parser)
    add_engine(parser)
    return engine_settings(parser.parse_args(["--model", str(MINIATURE), *arguments]))


class Model:
    def engine(self, *_, **options):
        self.options = options
        return argparse.Namespace(blocks=4)


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_the_option_reaches_the_engine(dtype):
    model = Model()
    server.make_engine(model, settings(*(["--kv-cache-dtype", dtype] if dtype != "auto" else [])))
    assert model.options["kv_cache_dtype"] == dtype


def test_it_is_refused_before_a_model_is_loaded(ascend, monkeypatch):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    monkeypatch.setattr(
        Qwen3OmniMoeForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("a model is loaded")
    )
    with pytest.raises(InputError, match="kv_cache_dtype='int8' is for CPU"):
        server.load_model(settings("--kv-cache-dtype", "int8"))

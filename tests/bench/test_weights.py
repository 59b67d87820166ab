"""Which weights are measured."""

import pytest

from ms_omni.bench.session import weights_of
from ms_omni.errors import InputError


def test_weights_are_written_once(tmp_path):
    shown = []
    first = weights_of("tiny", tmp_path, 3, shown.append)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert weights_of("tiny", tmp_path, 3, shown.append) == first == tmp_path / "tiny-seed3" and len(shown) == 1
    assert (first / "config.json").stat().st_mtime_ns == stamp


def test_a_checkpoint_is_taken_as_it_is_and_a_bare_config_gets_weights(tiny_checkpoint, tmp_path):
    assert weights_of(str(tiny_checkpoint), tmp_path, 0) == tiny_checkpoint
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    assert weights_of(str(bare), tmp_path, 0) == tmp_path / "bare-seed0"
    assert list((tmp_path / "bare-seed0").glob("*.safetensors"))


def test_several_processes_write_none(tmp_path):
    with pytest.raises(InputError, match="ms-omni tiny DIR --geometry mid.*--geometry DIR"):
        weights_of("mid", tmp_path, 0, may_write=False)
    assert not list(tmp_path.iterdir())

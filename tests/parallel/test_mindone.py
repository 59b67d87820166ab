"""What a user reads whose mindone is missing or does not work; no collective is needed for that."""

import importlib.machinery
import importlib.util

import pytest

from ms_omni.errors import InputError
from ms_omni.parallel import prepare_network, zero3

INSTALL = "pip install 'mindone==0.5.0' 'ml_dtypes<0.6'"


def found_in(monkeypatch, folder):
    spec = importlib.machinery.ModuleSpec("mindone", None, is_package=True)
    spec.submodule_search_locations.append(str(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        zero3.wrapper_class()
    assert "not installed" in one_line(error) and INSTALL in one_line(error)


def test_another_version(monkeypatch, tmp_path):
    found_in(monkeypatch, tmp_path)
    with pytest.raises(InputError) as error:
        zero3.wrapper_class()
    assert zero3.WRAPPER_FILE in one_line(error) and INSTALL in one_line(error)


@pytest.mark.parametrize("content", ["import there_is_no_such_module", "x = 1", "this is no Python"])
def test_broken(monkeypatch, tmp_path, content):
    found_in(monkeypatch, tmp_path)
    file = tmp_path / zero3.WRAPPER_FILE
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(InputError) as error:
        zero3.wrapper_class()
    assert str(file) in one_line(error) and INSTALL in one_line(error)


def test_nothing_happens_without_other_processes(tiny_model):
    """And mindone is not asked for."""
    before = dict(tiny_model.parameters_and_names())
    assert prepare_network(tiny_model, zero_stage=3) is tiny_model
    assert prepare_network(tiny_model.thinker) is tiny_model.thinker
    after = dict(tiny_model.parameters_and_names())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_arguments_that_cannot_be(tiny_model):
    with pytest.raises(InputError, match="zero_stage is 4"):
        prepare_network(tiny_model, zero_stage=4)
    with pytest.raises(InputError, match="'pair'"):
        prepare_network(tiny_model, zero_stage=3, optimizer_parallel_group="pair")

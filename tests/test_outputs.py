"""Outputs are read by name, by key and by position, as in transformers."""

from dataclasses import dataclass
from typing import Any

import pytest

from ms_omni.outputs import ModelOutput


@dataclass(eq=False)
class Output(ModelOutput):
    loss: Any = None
    logits: Any = None
    cache: Any = None


def test_a_field_that_is_none_has_no_position_and_no_key():
    output = Output(logits="logits", cache="cache")
    assert output.loss is None and output.logits == output["logits"] == output[0] == "logits"
    assert output[-1] == output[1] == "cache" and output[:2] == output.to_tuple() == ("logits", "cache")
    assert "logits" in output and "loss" not in output and "logits " not in output
    assert output.get("loss", 7) == 7
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[2]
    with pytest.raises(AttributeError):
        _ = output.scores


def test_it_goes_over_its_names_as_a_dictionary_does():
    output = Output(loss=1, logits=2)
    assert list(output) == list(output.keys()) == ["loss", "logits"]
    assert dict(output) == dict(**output) == {"loss": 1, "logits": 2} == dict(output.items())
    assert len(output) == 2 and list(output.values()) == [1, 2]
    output.cache = 3
    assert output[2] == 3 and output.to_tuple() == (1, 2, 3)

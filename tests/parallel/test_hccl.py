"""HCCL's settings: before it starts, where the user has said nothing, on cards that are known."""

import os

import mindspore as ms
import pytest
from mindspore._c_expression import MSContext
from mindspore.communication import management

from ms_omni import runtime
from ms_omni.config import config_folder
from ms_omni.parallel import hccl, mesh

NAMES = {setting.name for settings in hccl.SETTINGS.values() for setting in settings}
MODE = "HCCL_OP_EXPANSION_MODE"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what a test sets goes with it
        monkeypatch.delenv(name)
    monkeypatch.setattr(hccl, "_ours", set())


def joined(monkeypatch, device, role="MS_WORKER"):
    """What HCCL finds in its environment where a script joins a job of msrun's."""
    found = []
    monkeypatch.setattr(management, "init", lambda backend: found.append({name: os.environ.get(name) for name in NAMES}))
    monkeypatch.setattr(ms, "get_context", lambda _: device)
    monkeypatch.setattr(mesh.watch, "start", lambda: None)
    monkeypatch.setenv("MS_NODE_TIMEOUT", "600")
    if role:
        monkeypatch.setenv("MS_ROLE", role)
    mesh.adopt_init()
    management.init("hccl")
    return found[0]


@pytest.mark.parametrize("soc, card", [("ascend910b", "910b"), ("ascend910_93", "910c"), ("Ascend310P", None), ("", None)])
def test_they_are_set_before_it_starts(soc, card, monkeypatch):
    monkeypatch.setattr(MSContext.get_instance().__class__, "get_ascend_soc_version", lambda _: soc)
    monkeypatch.setenv("HCCL_BUFFSIZE", "64")
    found = joined(monkeypatch, "Ascend")
    ours = {} if card is None else {MODE: "AIV", "MS_ENABLE_LCCL": "off"}
    assert runtime.card() == (card, soc or "an Ascend without a name")
    assert {name: value for name, value in found.items() if value is not None} == {**ours, "HCCL_BUFFSIZE": "64"}


def test_what_the_user_says_stays_and_is_told(monkeypatch):
    monkeypatch.setenv(MODE, "HOST")
    hccl.apply("910b")
    assert os.environ[MODE] == "HOST"
    mode, lccl, size, order = hccl.in_force("910b")
    assert mode.startswith(f"{MODE}=HOST, set by you; ms_omni would set AIV: ") and "hiascend.com" in mode
    assert lccl.startswith("MS_ENABLE_LCCL=off, set by ms_omni: ")
    assert size.startswith("HCCL_BUFFSIZE is left to CANN: ") and order.startswith("HCCL_DETERMINISTIC is left to CANN: ")


def test_nothing_is_set_on_a_processor_nor_outside_a_job(monkeypatch):
    with pytest.warns(UserWarning, match="CPU has no 'hccl'"):
        assert not any(joined(monkeypatch, "CPU").values())
    monkeypatch.delenv("MS_ROLE")
    assert not any(joined(monkeypatch, "Ascend", role=None).values())
    assert list(hccl.in_force(None)) == []


def test_each_has_its_source():
    assert all(len(setting.source) > 20 and setting.why for settings in hccl.SETTINGS.values() for setting in settings)
    files = {path.stem for path in (config_folder() / "hardware").glob("*.json")}
    assert set(hccl.SETTINGS) == set(runtime.CARDS) == files

"""Every parity test runs on both geometries, against the values recorded for them."""

import json

import pytest

from tests.conftest import GAPS
from tests.reference import cases, checkpoints
from tests.reference.store import DATA, Reference


@pytest.fixture(scope="session", params=checkpoints.GEOMETRIES)
def geometry(request):
    return request.param


@pytest.fixture(scope="session")
def config(checkpoint_of, geometry):
    """The checkpoint's config.json as a dict."""
    return json.loads((checkpoint_of(geometry) / "config.json").read_text())


@pytest.fixture(scope="session")
def model(model_of, geometry):
    return model_of(geometry)


@pytest.fixture(scope="session")
def thinker_values(geometry):
    return Reference(DATA / f"{geometry}_thinker.npz")


@pytest.fixture(scope="session")
def speech_values(geometry):
    return Reference(DATA / f"{geometry}_speech.npz")


@pytest.fixture
def build(config):
    """`build(values, key)`: the inputs that the values under `key` were recorded with."""

    def case(values: Reference, key: str) -> cases.Case:
        found = cases.build_case(config, key.split("+")[0], values.notes[f"{key}/seed"])
        recorded = values.notes[f"{key}/digest"]
        assert found.digest == recorded, (
            f"the inputs of {key} are no longer those that were recorded ({found.digest}, recorded {recorded}): "
            "the checkpoint's configuration, cases.py or numpy's generator changed; run tests.reference.record_model"
        )
        return found

    return case


@pytest.fixture
def close():
    """`close(values, key, actual, part, relative)`: the largest difference stays under `relative` times the scale."""

    def check(values: Reference, key: str, actual, part: str, relative: float = 2e-5):
        gap, scale = values.gap(key, _numpy(actual))
        ratio = gap / scale if scale else gap
        GAPS[part] = (max(ratio, GAPS.get(part, (0.0, 0.0))[0]), relative)
        assert ratio <= relative, f"{key}: off by {gap:.3g} at scale {scale:.3g}, more than {relative:g} of it"

    return check


def _numpy(value):
    return value.asnumpy() if hasattr(value, "asnumpy") else value

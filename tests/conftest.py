"""Fixtures that many tests share: tiny checkpoints written once per session, loaded models, measured gaps."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub, but for those of tests/hub, which bring their own

import pytest

from tests.reference import checkpoints

GAPS: dict[str, tuple[float, float]] = {}  # submodule -> (largest difference, tolerance it was held to)


def pytest_addoption(parser):
    parser.addoption("--show-gaps", action="store_true", help="print the largest difference to the reference per part")


def pytest_collection_modifyitems(config, items):
    """Where the slow tests run, those marked `short`, which a slow one contains, need not."""
    if config.getoption("markexpr") == "":
        short = [item for item in items if item.get_closest_marker("short")]
        config.hook.pytest_deselected(items=short)
        items[:] = [item for item in items if item not in short]


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--show-gaps") and GAPS:
        terminalreporter.section("largest relative difference to the reference (tolerance)")
        for part, (gap, tolerance) in sorted(GAPS.items()):
            terminalreporter.write_line(f"{part:40s} {gap:.1e}  ({tolerance:.0e})")


@pytest.fixture(autouse=True)
def mindspore_runtime():
    """Prepare MindSpore before any test that has imported it; tests without it stay fast."""
    if "mindspore" in sys.modules:
        from ms_omni import runtime

        runtime.setup()


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """`checkpoint_of(geometry)`: folder of the float32 checkpoint that the recorded values belong to."""
    folders = {}

    def folder(geometry: str):
        if geometry not in folders:
            target = tmp_path_factory.mktemp("checkpoints") / geometry
            checkpoints.write(geometry, target)
            folders[geometry] = target
        return folders[geometry]

    return folder


@pytest.fixture(scope="session")
def model_of(checkpoint_of):
    """`model_of(geometry)`: that checkpoint loaded with ms_omni, talker included."""
    models = {}

    def model(geometry: str):
        if geometry not in models:
            from ms_omni import Qwen3OmniMoeForConditionalGeneration

            # Short answers in many shapes: tests/generation/test_steps.py compiles, the others need not.
            models[geometry] = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
                checkpoint_of(geometry), compile_steps=False
            )
        return models[geometry]

    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(checkpoint_of):
    return checkpoint_of("tiny")


@pytest.fixture(scope="session")
def tiny_model(model_of):
    return model_of("tiny")


@pytest.fixture
def use_operators():
    """`use_operators(implementation)`: in force for every model until the test ends; then as they were."""
    from ms_omni.modeling.ops import dispatch

    before = dispatch.implementation()
    yield dispatch.use
    dispatch.use(before)


@pytest.fixture
def ascend(use_operators):
    """The operators of Ascend on emulated kernels, in force while a test runs."""
    from ms_omni.modeling.ops.ascend import Ascend
    from tests import ascend_emulation

    undo = ascend_emulation.install()
    use_operators(Ascend)
    yield Ascend
    undo()

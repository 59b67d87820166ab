"""What `ms-omni doctor` says about the miniature."""

from dataclasses import replace

import pytest

from ms_omni.demo import samples as demo_samples
from ms_omni.doctor.runner import Options
from ms_omni.doctor.selfcheck import miniature


@pytest.fixture
def few(model, monkeypatch):
    """Two samples instead of all, and the model that is loaded already; `few(answer)` changes what is right."""

    def samples_with(answer=None):
        some = demo_samples.load_samples(demo_samples.find_miniature() / "samples")[7:9]
        some = [replace(sample, answer=answer or sample.answer) for sample in some]
        monkeypatch.setattr(demo_samples, "load_samples", lambda _: some)
        monkeypatch.setattr(type(model), "from_pretrained", lambda *_, **__: model)
        return list(miniature(Options()))

    return samples_with


def test_all_is_well(few):
    right, transcripts = few()
    assert right.level == "ok" and right.what.startswith("right answers to all 2 samples")
    assert transcripts.level == "ok"


def test_wrong_answers_are_named(few):
    finding = few("eleven")[0]
    assert finding.level == "error" and "text: '9'" in finding.what and "MS_OMNI_OPS=reference" in finding.do


def test_outside_a_clone_it_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_samples, "_folders", lambda: [tmp_path])
    (finding,) = miniature(Options())
    assert finding.level == "note" and finding.what.startswith("not tried")

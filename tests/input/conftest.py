"""A tiny checkpoint's processor files, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from ms_omni.input.processor import Qwen3OmniMoeProcessor
from ms_omni.input.tiny_processor import write_tiny_processor


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_processor(path)
    return path


@pytest.fixture(scope="session")
def processor(folder):
    return Qwen3OmniMoeProcessor.from_pretrained(folder)

"""What a token reads is counted from the parameters, and is what `ms-omni plan` computes."""

import pytest

from ms_omni.bench.measures import storage, token_bytes
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.parallel.predict import predict


@pytest.mark.parametrize("rows", [1, 4])
def test_bytes_of_a_token(tiny_model, rows):
    found = predict(tiny_model.config, parameter_shapes(tiny_model.config), "ep", 1, 256, 4, rows=rows)
    assert token_bytes(tiny_model, rows) == pytest.approx(found.token.reads - found.cached, rel=1e-6)
    assert storage(tiny_model) == f"float32 {found.held / 1e9:.2f} GB"

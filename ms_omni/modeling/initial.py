"""The weights of a model that is built from a configuration and not read from a file, as transformers starts them."""

import numpy as np
from mindspore import Tensor

RANGE = 0.02


def initialise(cell, deviation=RANGE, numbers=None):
    """Fills every parameter of a cell: with what `layers.parameter` noted as its start, else with normal numbers around 0.

    Their standard deviation is `initializer_range` of the configuration of the smallest part that has one. They follow
    `mindspore.set_seed` and numpy's seed.
    """
    numbers = numbers or np.random.default_rng(np.random.randint(2**31))
    deviation = getattr(getattr(cell, "config", None), "initializer_range", None) or deviation
    for parameter in cell.get_parameters(expand=False):
        start = getattr(parameter, "start", None)
        if start is None:
            values = numbers.standard_normal(parameter.shape, np.float32)
            values *= deviation
        else:
            values = np.full(parameter.shape, start, np.float32)
        parameter.set_data(Tensor(values).astype(parameter.dtype))
    for part in cell.cells():
        initialise(part, deviation, numbers)

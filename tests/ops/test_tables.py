"""What the fused kernels are told in structs: the same names on both sides, and as many numbers as there are members."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ms_omni.modeling.ops.fused import LayerWeights, StackWeights
from tests.ops.test_refusals import call, fitting

try:
    from ms_omni.modeling.ops import cpu_fused, cpu_table
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)


def ones(*shape):
    return Parameter(Tensor(np.full(shape, 0.1, np.float32)))


@pytest.fixture
def stack():
    """Two layers that suit the arrays of `fitting("decoder_step")`."""
    shapes = dict(
        input_norm=(8,), q=(8, 8), k=(4, 8), v=(4, 8), o=(8, 8), post_norm=(8,), gate=(6, 8), up=(6, 8), down=(8, 6)
    )
    layer = LayerWeights(**{**dict.fromkeys(LayerWeights._fields[:19]), **{name: ones(*s) for name, s in shapes.items()}})
    return cpu_fused.PreparedStack(StackWeights((layer, layer), ones(8), 1e-6, 4))


def test_as_many_numbers_as_there_are_members(stack):
    arrays, buffers = fitting("decoder_step"), [np.zeros((4, 1, 3, 4), np.float32) for _ in range(4)]
    arrays[0][:] = arrays[1][:] = 1
    cache = cpu_fused._Cache(blocks=4, block=3, width=2, scaled=0)
    addresses = [cpu_fused.address(x) for x in buffers]
    head = cpu_fused.matrix(arrays[3])
    whole = cpu_table.table(
        head, stack.table(), cache, addresses, [2, 5], [1, 0, 3, 2]
    )  # lengths, and the blocks of two rows
    arrays[4] = whole
    assert call("decoder_step", arrays)[0] == 0 and np.isfinite(arrays[6]).all() and arrays[6].all()
    for buffer in buffers:  # written is the last position of each row
        assert np.argwhere(buffer.any(-1)).tolist() == [[1, 0, 1], [2, 0, 1]]
    for index, value, reason in (
        (-6, 0, "lengths hold 0, expected 1 to 6"),
        (-5, 7, "lengths hold 7, expected 1 to 6"),
        (-2, 4, "tables hold 4, expected 0 to 3"),
        (-1, -1, "tables hold -1, expected 0 to 3"),
    ):
        arrays[4] = whole.copy()
        arrays[4][index] = value
        assert call("decoder_step", arrays) == (1, f"decoder_step: {reason}")
    other = whole.copy()
    other[len(head.view(np.int64)) + cpu_fused._Stack.dtype.fields["layers"][1] // 8] = 3
    for wrong in (whole[:-1], np.append(whole, whole[-1:]), np.delete(whole, 9), other):
        arrays[4] = wrong
        assert call("decoder_step", arrays) == (1, "decoder_step: the table does not describe a stack")


def test_keys_and_values_as_codes_have_scales_behind_them(stack):
    arrays, buffers = fitting("decoder_step"), [np.zeros((4, 1, 3, 4), np.int8) for _ in range(4)]
    scales = [np.zeros((4, 1, 3, 1), np.float32) for _ in range(4)]
    arrays[0][:] = arrays[1][:] = 1
    cache = cpu_fused._Cache(blocks=4, block=3, width=2, scaled=1)
    addresses = [cpu_fused.address(x) for x in (*buffers, *scales)]
    head = cpu_fused.matrix(arrays[3])
    arrays[4] = cpu_table.table(head, stack.table(), cache, addresses, [2, 5], [1, 0, 3, 2])
    assert call("decoder_step", arrays)[0] == 0 and np.isfinite(arrays[6]).all() and arrays[6].all()
    for codes, scale in zip(buffers, scales):
        written = [[1, 0, 1], [2, 0, 1]]
        assert np.argwhere(scale[..., 0]).tolist() == np.argwhere(codes.any(-1)).tolist() == written
        assert all(np.abs(codes[tuple(index)]).max() == 127 for index in written)
    arrays[4] = cpu_table.table(head, stack.table(), cache, addresses[:4], [2, 5], [1, 0, 3, 2])
    assert call("decoder_step", arrays) == (1, "decoder_step: the table does not describe a stack")


def test_a_member_that_only_one_side_knows_is_named(stack):
    with pytest.raises(TypeError, match=r"the struct Cache in C\+\+ and its values in Python differ in blocks, scale"):
        cpu_fused._Cache(block=1, width=1, scaled=0, scale=0)

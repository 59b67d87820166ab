"""Arrays for scripts that expect tensors: every method against numpy's own words for the same."""

import copy
import io
import pickle

import numpy as np
import pytest

from ms_omni.arrays import HostArray, as_dtype
from ms_omni.errors import InputError

PLAIN = np.random.default_rng(3).normal(0, 2, (3, 4)).astype(np.float32)


@pytest.fixture
def x():
    return HostArray.of(PLAIN.copy())


def same(result, expected):
    assert isinstance(result, HostArray)
    assert result.dtype == np.asarray(expected).dtype and np.array_equal(result, expected)


def test_what_a_script_asks_of_a_tensor(x):
    assert (x.size, x.size(), x.size(1), x.size(dim=-1)) == (12, (3, 4), 4, 4)
    assert (x.dim(), x.ndim, x.numel(), x.shape, x.element_size()) == (2, 2, 12, (3, 4), 4)
    assert (x.device, x.device.type, x.is_cuda, x.requires_grad, x.grad) == ("cpu", "cpu", False, False, None)
    assert x.is_floating_point() and not x.long().is_floating_point()
    with pytest.raises(AttributeError, match="has no attribute 'frobnicate'.*mindspore.Tensor"):
        x.frobnicate()


def test_a_size_is_a_number_wherever_numpy_wants_one(x):
    assert np.zeros(x.size).shape == (12,) and range(x.size)[-1] == 11 and f"{x.size:d}" == "12"
    assert pickle.loads(pickle.dumps(x.size)) == 12


def test_the_ways_to_a_numpy_array(x):
    for plain in (x.numpy(), x.asnumpy(), x.detach().cpu().numpy(), x.cpu().numpy(force=True), x.contiguous().numpy()):
        assert type(plain) is np.ndarray and np.array_equal(plain, PLAIN)
    assert x.tolist() == PLAIN.tolist() and x[1, 2].item() == PLAIN[1, 2].item()


class Named:
    """As PyTorch's dtypes and devices: known by what they print."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


@pytest.mark.parametrize("target", ["cpu", "cuda", "cuda:1", "npu:0", "Ascend", "CPU", 0, None, Named("cuda:0")], ids=str)
def test_a_device_changes_nothing(target, x):
    assert x.to(target) is x and x.to(device=target, non_blocking=True) is x
    assert x.cuda() is x and x.cpu() is x and x.npu(0) is x


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("float16", "float16"),
        ("torch.float16", "float16"),
        ("torch.float", "float32"),
        ("torch.bfloat16", "float32"),
        ("Int64", "int64"),  # how MindSpore prints its dtypes
        ("torch.long", "int64"),
        (np.int32, "int32"),
        (np.dtype("uint8"), "uint8"),
        (bool, "bool"),
        (Named("torch.float64"), "float64"),
    ],
    ids=str,
)
def test_dtypes_of_every_library(kind, expected, x):
    assert as_dtype(kind) == expected
    same(x.to(kind), PLAIN.astype(expected))
    same(x.to("cuda", dtype=kind), PLAIN.astype(expected))
    same(x.to(np.zeros(1, expected)), PLAIN.astype(expected))


def test_dtypes_by_method(x):
    names = {"half": "float16", "bfloat16": "float32", "double": "float64", "int": "int32", "long": "int64", "bool": "bool"}
    for name, dtype in names.items():
        same(getattr(x, name)(), PLAIN.astype(dtype))
    assert x.float() is x and x.type() == "float32"
    same(x.type_as(x.int()), PLAIN.astype("int32"))


@pytest.mark.parametrize("wrong", ["float17", "tpu", object()], ids=["dtype", "device", "object"])
def test_what_is_neither_device_nor_dtype(wrong, x):
    with pytest.raises(InputError, match="is no dtype"):
        x.to(wrong)


def test_shapes_as_pytorch_changes_them(x):
    same(x.view(2, -1), PLAIN.reshape(2, 6))
    same(x.view((6, 2)), PLAIN.reshape(6, 2))
    same(x.view(-1), PLAIN.reshape(-1))
    same(x.unsqueeze(0), PLAIN[None])
    same(x.unsqueeze(-1).squeeze(-1), PLAIN)
    same(x.squeeze(0), PLAIN)  # numpy would raise: that axis is longer than 1
    same(x[None, :, None].squeeze(), PLAIN)
    same(x[None].permute(2, 0, 1), PLAIN[None].transpose(2, 0, 1))
    same(x.transpose(0, 1), PLAIN.T)
    same(x[None].transpose(-1, 1), PLAIN.T[None])
    same(x.t(), PLAIN.T)
    same(x[None].flatten(1), PLAIN.reshape(1, 12))
    same(x[None].flatten(0, 1), PLAIN)
    same(x[0].expand(5, -1), np.tile(PLAIN[0], (5, 1)))
    same(x.repeat(2, 1), np.tile(PLAIN, (2, 1)))
    same(x.repeat_interleave(2, dim=0), np.repeat(PLAIN, 2, axis=0))
    same(x.t().contiguous(), PLAIN.T)
    assert [part.shape for part in x.split(2)] == [(2, 4), (1, 4)]
    assert [part.shape for part in x.split([1, 3], dim=1)] == [(3, 1), (3, 3)]
    assert [part.shape for part in x.chunk(2, dim=-1)] == [(3, 2), (3, 2)]
    assert [part.shape for part in x.unbind(1)] == [(3,)] * 4


def test_a_clone_is_ones_own(x):
    x.clone()[...] = 0
    same(x, PLAIN)


def test_numpys_meaning_of_the_same_names(x):
    same(x.view(np.int32), PLAIN.view(np.int32))
    same(x.view("int32"), PLAIN.view(np.int32))
    assert type(x.view(np.ndarray)) is np.ndarray
    same(x.repeat(2, axis=1), np.repeat(PLAIN, 2, axis=1))
    same(np.repeat(x, 2, 1), np.repeat(PLAIN, 2, 1))
    same(np.tile(x, (2, 2)), np.tile(PLAIN, (2, 2)))
    same(np.transpose(x[None], (1, 0, 2)), np.transpose(PLAIN[None], (1, 0, 2)))
    same(x.max(axis=1), PLAIN.max(1))
    same(np.std(x, axis=0), np.std(PLAIN, axis=0))
    same(x.flatten("F"), PLAIN.flatten("F"))
    with pytest.raises(ValueError, match="size not equal to one"):
        np.squeeze(x, 0)


def test_reductions(x):
    for name in ("sum", "mean", "prod", "argmax", "argmin"):
        plain = getattr(PLAIN, name)
        same(getattr(x, name)(dim=-1), plain(axis=-1))
        same(getattr(x, name)(-1, keepdim=True), plain(-1, keepdims=True))
        assert getattr(x, name)().item() == plain().item()
    same(x.sum(dim=[0, 1]), PLAIN.sum())
    same(x.cumsum(dim=1), PLAIN.cumsum(1))
    assert x.gt(0).any() and not x.gt(0).all()
    same(x.std(dim=0), PLAIN.std(0, ddof=1))
    same(x.var(dim=0, unbiased=False), PLAIN.var(0))
    values, indices = x.max(dim=1)
    same(values, PLAIN.max(1))
    same(indices, PLAIN.argmax(1))
    same(x.min(dim=0, keepdim=True).values, PLAIN.min(0, keepdims=True))


def test_what_a_logits_processor_does(x):
    values, indices = x.topk(2, dim=-1)
    same(values, -np.sort(-PLAIN)[:, :2])
    same(indices, np.argsort(-PLAIN)[:, :2])
    assert np.allclose(x.softmax(dim=-1).sum(-1), 1)
    assert np.allclose(np.exp(x.log_softmax(-1)), x.softmax(-1))
    same(x.masked_fill(x.lt(0), -np.inf), np.where(PLAIN < 0, np.float32(-np.inf), PLAIN))
    same(x.gather(1, indices), values)
    same(x.clamp(min=-1, max=1), PLAIN.clip(-1, 1))
    same(x.eq(x[:1]), PLAIN[:1] == PLAIN)
    same(x.index_select(0, [2, 0]), PLAIN[[2, 0]])
    x[:, 0] = 7
    x.masked_fill_(x == 7, 8)
    assert (x[:, 0] == 8).all() and np.array_equal(x[:, 1:], PLAIN[:, 1:])


def test_results_stay_of_the_class(x):
    for result in (x + 1, x @ x.T, x[0], x[x > 0], -x, np.exp(x), np.where(x > 0, x, 0), np.concatenate([x, x]), x.sum()):
        assert isinstance(result, HostArray)
    assert all(isinstance(row, HostArray) for row in x)
    assert f"{x.mean():.2f}" == f"{PLAIN.mean():.2f}"


def test_copies_and_files(x):
    for again in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
        same(again, PLAIN)
    file = io.BytesIO()
    np.save(file, x)
    file.seek(0)
    assert np.array_equal(np.load(file), PLAIN)


def test_mindspore_takes_them(x):
    mindspore = pytest.importorskip("mindspore")
    tensor = mindspore.Tensor(x)
    assert tensor.shape == (3, 4) and np.array_equal(tensor.asnumpy(), PLAIN)
    same(x.to(mindspore.float16), PLAIN.astype(np.float16))
    same(x.to(mindspore.bfloat16), PLAIN)
    same(x.long().to(tensor), PLAIN.astype(np.int64).astype(np.float32))


def test_in_place(x):
    assert x.clamp_(-1, 1) is x and x.add_(1).mul_(2).sub_(1).div_(4) is x
    same(x, (np.clip(PLAIN, -1, 1) + 1) * 2 / 4 - np.float32(0.25))
    assert x.masked_fill_(x > 0, 5) is x and x.max() == 5
    same(x.abs_().neg_().copy_(PLAIN), PLAIN)
    same(x.fill_(3), np.full_like(PLAIN, 3))
    same(x.zero_().detach_().data, np.zeros_like(PLAIN))


def test_orders_and_parts(x):
    values, indices = x.sort(dim=0, descending=True)
    same(values, np.sort(PLAIN, axis=0)[::-1])
    same(np.take_along_axis(x, indices, 0), values)
    same(x.argsort(dim=-1), np.argsort(PLAIN, -1))
    same(x.select(1, 2), PLAIN[:, 2])
    same(x.narrow(1, 1, 2), PLAIN[:, 1:3])
    same(x.flip(1), PLAIN[:, ::-1])
    same(x.flip(dims=[0, 1]), PLAIN[::-1, ::-1])
    same((x > 0).nonzero(as_tuple=False), np.argwhere(PLAIN > 0))
    assert (x > 0).nonzero()[0].tolist() == (PLAIN > 0).nonzero()[0].tolist()
    assert x.sort() is None and x.equal(np.sort(PLAIN)) and x.allclose(np.sort(PLAIN) + 1e-9, atol=1e-6)


def test_new_arrays_of_the_same_kind(x):
    same(x.new_zeros(2, 3), np.zeros((2, 3), np.float32))
    same(x.new_ones((2, 3), dtype="torch.LongTensor"), np.ones((2, 3), np.int64))
    same(x.new_full((2,), 7), np.full(2, 7, np.float32))

"""The plan "zero3": every rank holds an N-th of every parameter; a block's weights are gathered when it is used.

    layers.0  |gather 0|compute 0        |
    layers.1           |gather 1|        |compute 1        |          gathers run ahead by one block where the
    layers.2                             |gather 2|        |compute 2  device overlaps them with computing

There is one gather per large parameter and one for all small ones of a block, behind `source` of our layers. Their order follows
from the order of the cells alone, so it is the same on every rank. Nothing is replicated, norms and biases neither.

The gathering is done by `ZeroParamWrapper`, a cell of mindone's. `import mindone.trainers.zero` would do, but brings all of
mindone's models along: 3 s and 830 MB in each process, where a rank is to hold little more than its share of the weights. The
wrapper's file needs nothing but MindSpore, so it is loaded by itself.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms

from ..errors import InputError
from ..modeling import ops
from ..modeling.layer import filled
from . import watch
from .collectives import Collectives
from .group import ProcessGroup, join
from .layers import ByRow, Mixin, become
from .mesh import Mesh, under_msrun, world_group
from .plan import Run, block_of, bundles, zero3_plan

WORLD_GROUPS = (None, "hccl_world_group", "nccl_world_group", "mccl_world_group")
COMPONENTS = ("thinker", "talker", "code2wav")


def prepare_network(
    network: Any,
    zero_stage: int = 0,
    optimizer_parallel_group: str | None = None,
    parallel_modules: dict[type, type] | None = None,
    special_cases_parallel_module: dict[type, type] | None = None,
) -> Any:
    """Spreads the weights of a loaded model, or of one of its parts, over all ranks; mindone's signature.

    network: the model, or its thinker, talker or code2wav; it is changed and returned. zero_stage: 3; stages below
    spread what only training has, so nothing happens. optimizer_parallel_group: all ranks. parallel_modules and
    special_cases_parallel_module: `{cell class: wrapper}` for cells of the caller's own, given to mindone. With one
    process, and for what is spread already, nothing happens. `from_pretrained(parallel="zero3")` does the same without
    ever holding the whole model. Raises `InputError`.
    """
    if zero_stage not in (0, 1, 2, 3):
        raise InputError(f"zero_stage is {zero_stage!r}, expected 0, 1, 2 or 3")
    if optimizer_parallel_group not in WORLD_GROUPS:
        raise InputError(
            f"optimizer_parallel_group is {optimizer_parallel_group!r}; the weights are spread over all ranks, "
            "pass GlobalComm.WORLD_COMM_GROUP"
        )
    group = network_group() if zero_stage == 3 else None
    if group is None:
        return network
    with watch.busy():
        for prefix, part in parts_of(network):
            if part.process_group is None:
                runs = runs_of(part, prefix, group.mesh)
                cut(part, prefix, runs)
                group.slices.update(runs)
                group.attach(part)
    network.process_group = network.process_group or group
    if parallel_modules or special_cases_parallel_module:
        network = rewrite(network, world_group(), parallel_modules, special_cases_parallel_module)
    return network


@functools.cache
def network_group() -> ProcessGroup | None:
    """The `ProcessGroup` of everything that `prepare_network` spreads in this process, or None for a process of its own."""
    return join("zero3") if under_msrun() else None


def parts_of(network: Any) -> list[tuple[str, Any]]:
    """`[(prefix, cell)]`: the components of a model."""
    prefix = getattr(network, "checkpoint_prefix", None)
    if prefix in [f"{name}." for name in COMPONENTS]:
        return [(prefix, network)]
    found = [(f"{name}.", network._cells[name]) for name in COMPONENTS if name in getattr(network, "_cells", ())]
    if prefix != "" or not found:
        raise InputError(
            f"prepare_network got a {type(network).__name__}; expected the model, or its thinker, talker or code2wav"
        )
    return found


def runs_of(part: Any, prefix: str, mesh: Mesh) -> dict[str, Any]:
    """The `Run` of every parameter of a whole component, by full name."""
    shapes = {prefix + name: tuple(parameter.shape) for name, parameter in part.parameters_and_names()}
    return zero3_plan(shapes).slices(shapes, mesh.rank, mesh.size)


def cut(part: Any, prefix: str, runs: dict[str, Run]) -> None:
    """Replaces the loaded parameters of a component by this rank's runs of them, one after another."""
    cells = _cells(part, prefix)
    for name, run in runs.items():
        owner, _, leaf = name.rpartition(".")
        old = getattr(cells[owner], leaf)  # a new Parameter: one that has been computed with keeps its device memory
        setattr(cells[owner], leaf, filled(old, run.cut(old.asnumpy()), trained=False))
    if hasattr(part, "prepared_frame"):
        part.prepared_frame = None  # weights as an operator wants them that is not used any more


def gather_weights(model: Any, slices: dict[str, Any], comm: Collectives) -> None:
    """Lets the layers of a model, whose parameters are this rank's runs, gather what they read.

    slices: `{full name: Run}`; comm: `Collectives`.
    """
    for prefix, part in parts_of(model):
        cells, groups, gather = _cells(part, prefix), {}, Gather(comm)
        for name in (prefix + name for name, _ in part.parameters_and_names()):
            owner, _, leaf = name.rpartition(".")
            groups.setdefault(block_of(name), []).append((name, cells[owner], leaf))
        tables = {}
        for member in groups.pop(None, ()):
            tables.setdefault(id(member[1]), []).append(member)
        for members in tables.values():
            name, cell, _ = members[0]
            cell.source = Block(_bundled(members, slices, gather)).source  # a tied head reads the whole table
            become(cell, ByRow, first=slices[name].start // slices[name].row, all_reduce=comm.all_reduce)
        _chain({owner: _block(cells[owner], members, slices, gather, comm.mesh) for owner, members in groups.items()})


class Gathered(Mixin):
    """A cell that gathers the weights of its block while it runs. gathering: the `Block`."""

    def construct(self, *args: Any, **kwargs: Any) -> Any:
        with self.gathered_weights():
            return super().construct(*args, **kwargs)

    def gathered_weights(self) -> AbstractContextManager[None]:
        return self.gathering.gathered_weights()


def _cells(part: Any, prefix: str) -> dict[str, Any]:
    return {(prefix + name).rstrip("."): cell for name, cell in part.cells_and_names()}


def _block(owner: Any, members: list, runs: dict[str, Run], gather: "Gather", mesh: Mesh) -> "Block":
    block = Block(_bundled(members, runs, gather), stream_ahead(mesh))
    for _, cell, _ in members:
        cell.source = block.source
    become(owner, Gathered, gathering=block)
    return block


def _chain(blocks: "dict[str, Block]") -> None:
    """Tells each block of a list which one is used after it."""
    for owner, block in blocks.items():
        parent, _, index = owner.rpartition(".")
        block.following = blocks.get(f"{parent}.{int(index) + 1}") if index.isdigit() else None


def _bundled(members: list, runs: dict[str, Run], gather: "Gather") -> "list[Bundle]":
    """Bundles of parameters of one dtype each."""
    parameters = {name: getattr(cell, leaf) for name, cell, leaf in members}
    alike = {}
    for name, parameter in parameters.items():
        alike.setdefault(parameter.dtype, {})[name] = runs[name].elements * parameter.itemsize
    return [
        Bundle([parameters[name] for name in names], [runs[name] for name in names], gather)
        for sizes in alike.values()
        for names in bundles(sizes)
    ]


SENT = {ms.bfloat16: ms.float32, ms.int8: ms.float16, ms.uint8: ms.float16}
"""MindSpore's CPU gathers none of these; the others hold all their numbers."""


class Gather:
    """Parts of all ranks behind one another, by mindone's wrapper; counted."""

    def __init__(self, comm: Collectives) -> None:
        self.comm = comm
        self.sent = SENT if comm.mesh.backend != "hccl" else {}
        self.wrapper = functools.cache(lambda dtype: gatherer(dtype, world_group(), comm.size))

    def __call__(self, part: Any) -> Any:
        sent = part.astype(self.sent.get(part.dtype, part.dtype))
        self.comm.traffic.add("all_gather", self.comm.size * sent.size * sent.itemsize)
        return self.wrapper(sent.dtype)(sent).astype(part.dtype)


@functools.cache
def stream_ahead(mesh: Mesh) -> "StreamAhead | None":
    """What gathers ahead of the computation, or None on devices that cannot do both at once."""
    return StreamAhead(ms.runtime) if mesh.backend == "hccl" else None


class Bundle:
    """Parameters that one collective gathers.

    parameters: the local parts, one Parameter each; runs: their `Run`s; gather: part of all ranks -> whole.
    """

    def __init__(self, parameters: list, runs: list[Run], gather: Callable[[Any], Any]) -> None:
        self.parameters = parameters
        self.runs = runs
        self.gather = gather

    def __call__(self) -> list[Any]:
        """The whole weights, in order."""
        if len(self.parameters) == 1:
            return [self.runs[0].join(self.gather(self.parameters[0]))]
        parts = ops.concat([parameter.reshape(-1) for parameter in self.parameters], 0)
        parts = self.gather(parts).reshape(-1, parts.shape[0])  # [ranks, elements]
        weights, start = [], 0
        for run in self.runs:
            weights.append(run.join(parts[:, start : start + run.length].contiguous()))
            start += run.length
        return weights


class Block:
    """The bundles of one cell. `following`: the block that is used next, gathered ahead where `ahead` can do that.

    Held while a cell runs; `source` is what its layers read their weights through.
    """

    def __init__(self, bundles: list[Bundle], ahead: Any = None) -> None:
        self.bundles = bundles
        self.sources = {
            id(parameter): (bundle, index) for bundle in bundles for index, parameter in enumerate(bundle.parameters)
        }
        self.ahead = ahead
        self.following: Block | None = None
        self.coming: Any = None
        self.users = 0
        self.weights: dict[int, Any] = {}

    def source(self, parameter: Any) -> Any:
        """The whole weight of a sharded parameter; outside the block's cell it is gathered just for the caller."""
        if parameter is None or id(parameter) not in self.sources:
            return parameter
        if self.weights:
            return self.weights[id(parameter)]
        bundle, index = self.sources[id(parameter)]
        return bundle()[index]

    @contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """Holds the whole weights inside the context; may be nested."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        self.users += 1
        if self.users > 1:
            return
        if self.coming is None:
            self.weights = self._gather()
        else:
            self.weights, self.coming = self.ahead.take(self.coming), None
        if self.ahead is not None and self.following is not None and self.following.coming is None:
            self.following.coming = self.ahead.start(self.following._gather)

    def _leave(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.weights = {}

    def _gather(self) -> dict[int, Any]:
        return {id(parameter): weight for bundle in self.bundles for parameter, weight in zip(bundle.parameters, bundle())}


class StreamAhead:
    """Gathers on a stream of their own, beside what is computed. For devices with streams (Ascend)."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.stream = runtime.Stream()

    def start(self, gather: Callable[[], dict]) -> tuple[dict, Any]:
        """Begins a gather; the result is for `take`."""
        with self.runtime.StreamCtx(self.stream):
            weights = gather()
            return weights, self.stream.record_event()

    def take(self, started: tuple[dict, Any]) -> dict:
        """The weights, once the computing stream has been told to wait for them."""
        weights, event = started
        self.runtime.current_stream().wait_event(event)
        return weights


WRAPPER_FILE = "models/modules/parallel/param_wrapper.py"
INSTALL = "Install it with: pip install 'mindone==0.5.0' 'ml_dtypes<0.6'"


def wrapper_class() -> Any:
    """mindone's `ZeroParamWrapper`. Raises `InputError` with one line where mindone is missing or does not work."""
    try:
        spec = importlib.util.find_spec("mindone")
    except (ImportError, ValueError) as error:
        raise InputError(f"ZeRO-3 is mindone's, and looking for it failed: {error}. {INSTALL}") from None
    if spec is None:
        raise InputError(f"ZeRO-3 is mindone's, and mindone is not installed. {INSTALL}")
    folders = spec.submodule_search_locations or []
    files = [path for path in (Path(folder) / WRAPPER_FILE for folder in folders) if path.is_file()]
    if not files:
        raise InputError(f"ZeRO-3 is mindone's, and the installed mindone has no {WRAPPER_FILE}. {INSTALL}")
    return _load(files[0])


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("ms_omni_mindone_param_wrapper", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.ZeroParamWrapper
    except Exception as error:  # whatever a version that is not meant for this MindSpore raises
        raise InputError(
            f"ZeRO-3 is mindone's, and loading {file} failed: {type(error).__name__}: {error}. {INSTALL}"
        ) from None


def gatherer(dtype: Any, group: str, size: int) -> Any:
    """A cell of mindone's that turns the parts `[n, ...]` of a group's `size` ranks into the whole `[size * n, ...]`.

    The wrapper looks at a parameter for its dtype and for whether its first axis divides, and keeps nothing of it; our
    parts always divide, so one cell serves all of them.
    """
    wrapper = wrapper_class()
    with _data_parallel():
        witness = ms.Parameter(ms.Tensor([0] * size, dtype), name="parts")
        cell = wrapper(witness, zero_stage=3, optimizer_parallel_group=group)
    if not cell.need_rewrite:
        raise InputError(f"mindone's ZeroParamWrapper refuses to gather over the group {group!r}. {INSTALL}")
    return cell


def rewrite(network: Any, group: str, parallel_modules: dict | None, special_cases: dict | None) -> Any:
    """mindone's own `prepare_network`, for cells of the classes that the caller names. Imports all of mindone."""
    try:
        from mindone.trainers.zero import prepare_network
    except Exception as error:  # it imports half a world
        raise InputError(
            f"parallel_modules are for mindone, and importing it failed: {type(error).__name__}: {error}. {INSTALL}"
        ) from None
    with _data_parallel():
        return prepare_network(network, 3, group, parallel_modules or {}, special_cases or {})


@contextmanager
def _data_parallel() -> Iterator[None]:
    """mindone gathers in MindSpore's data-parallel mode only; whatever mode the caller had comes back."""
    before = ms.get_auto_parallel_context("parallel_mode")
    ms.set_auto_parallel_context(parallel_mode="data_parallel")
    try:
        yield
    finally:
        ms.set_auto_parallel_context(parallel_mode=before)

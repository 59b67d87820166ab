"""The plan "zero3": every rank holds an N-th of every parameter; a block's weights are gathered when it is used.

mindone's `ZeroParamWrapper` does the gathering. It stands behind `source` of our layers, one gather per large
parameter and one for all small ones of a block (`blocks.py`). Nothing is replicated, norms and biases neither.
"""

import functools

import mindspore as ms

from ..errors import InputError
from ..modeling.layer import filled
from . import mindone, watch
from .blocks import Block, Bundle, StreamAhead
from .layers import ByRow, become
from .mesh import under_msrun, world_group
from .team import join
from .zero3_plan import block_of, bundles, make_plan

WORLD_GROUPS = (None, "hccl_world_group", "nccl_world_group", "mccl_world_group")
COMPONENTS = ("thinker", "talker", "code2wav")


def prepare_network(
    network, zero_stage=0, optimizer_parallel_group=None, parallel_modules=None, special_cases_parallel_module=None
):
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
    team = network_team() if zero_stage == 3 else None
    if team is None:
        return network
    with watch.busy():
        for prefix, part in parts_of(network):
            if part.team is None:
                runs = place(part, prefix, team.mesh)
                cut(part, prefix, runs)
                team.slices.update(runs)
                team.attach(part)
    network.team = network.team or team
    if parallel_modules or special_cases_parallel_module:
        network = mindone.rewrite(network, world_group(), parallel_modules, special_cases_parallel_module)
    return network


@functools.cache
def network_team():
    """The `Team` of everything that `prepare_network` spreads in this process, or None for a process of its own."""
    return join("zero3") if under_msrun() else None


def parts_of(network):
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


def place(part, prefix, mesh):
    """The `Run` of every parameter of a whole component, by full name."""
    shapes = {prefix + name: tuple(parameter.shape) for name, parameter in part.parameters_and_names()}
    return make_plan(None, shapes, mesh.size).place(shapes, mesh.rank, mesh.size)


def cut(part, prefix, runs):
    """Replaces the loaded parameters of a component by this rank's runs of them, one after another."""
    cells = _cells(part, prefix)
    for name, run in runs.items():
        owner, _, leaf = name.rpartition(".")
        old = getattr(cells[owner], leaf)  # a new Parameter: one that has been computed with keeps its device memory
        setattr(cells[owner], leaf, filled(old, run.cut(old.asnumpy()), trained=False))
    if hasattr(part, "prepared_frame"):
        part.prepared_frame = None  # weights as an operator wants them that is not used any more


def attach(model, slices, comm):
    """Lets the layers of a model, whose parameters are this rank's runs, gather what they read.

    slices: `{full name: Run}`; comm: `Collectives`. Returns None: every rank computes the whole vocabulary.
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


class Gathered:
    """A cell that has the weights of its block at hand while it runs. gathering: the `Block`."""

    def construct(self, *args, **kwargs):
        with self.held():
            return super().construct(*args, **kwargs)

    def held(self):
        return self.gathering.held()


def _cells(part, prefix):
    return {(prefix + name).rstrip("."): cell for name, cell in part.cells_and_names()}


def _block(owner, members, runs, gather, mesh):
    block = Block(_bundled(members, runs, gather), stream_ahead(mesh))
    for _, cell, _ in members:
        cell.source = block.source
    become(owner, Gathered, gathering=block)
    return block


def _chain(blocks):
    """Tells each block of a list which one is used after it."""
    for owner, block in blocks.items():
        parent, _, index = owner.rpartition(".")
        block.following = blocks.get(f"{parent}.{int(index) + 1}") if index.isdigit() else None


def _bundled(members, runs, gather):
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

    def __init__(self, comm):
        self.comm = comm
        self.sent = SENT if comm.mesh.backend != "hccl" else {}
        self.wrapper = functools.cache(lambda dtype: mindone.gatherer(dtype, world_group(), comm.size))

    def __call__(self, part):
        sent = part.astype(self.sent.get(part.dtype, part.dtype))
        self.comm.traffic.add("all_gather", self.comm.size * sent.size * sent.itemsize)
        return self.wrapper(sent.dtype)(sent).astype(part.dtype)


@functools.cache
def stream_ahead(mesh):
    """What gathers ahead of the computation, or None on devices that cannot do both at once."""
    return StreamAhead(ms.runtime) if mesh.backend == "hccl" else None

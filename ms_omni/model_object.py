"""What scripts for transformers and PyTorch call on a model: its mode, dtype, parameters and embeddings."""

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import mindspore as ms
from mindspore import Parameter, nn

from .arrays import as_dtype, is_device
from .checkpoint.load import dtype_of
from .errors import ConfigError, InputError
from .locking import exclusive
from .modeling import ops
from .modeling.layer import Layer, Trainable, coded_names, is_lazy, layers_in, lazy_parameters, widen
from .modeling.layers import RANGE, Embedding, initialise
from .runtime import setup


def _check_memory(cell):
    """Raises `ConfigError` for a model of more bytes than this machine has: filling it would end in a hang or a kill."""
    needed = sum(math.prod(parameter.shape) * parameter.itemsize for parameter in cell.get_parameters())
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > here:
        raise ConfigError(
            f"{type(cell).__name__}: a model of these sizes takes {needed / 1e9:.1f} GB, and this machine has {here / 1e9:.1f} GB"
        )


class ModelObject(Trainable, nn.Cell):
    """Methods of a public model class, or of a part of one, in front of the cell that computes."""

    main_input_name = "input_ids"
    base_model_prefix = "model"
    config: Any
    is_gradient_checkpointing = False
    supports_gradient_checkpointing = False
    _tied_weights_keys = None  # a tied head is the embedding itself here
    _no_split_modules = ()

    def __init__(self, *config: Any) -> None:
        """From a configuration: with weights as transformers starts them, unless they are loaded."""
        if is_lazy():
            super().__init__(*config)
            return
        with exclusive:
            setup()
            ops.settle(ms.float32)
            with lazy_parameters(ms.float32):
                super().__init__(*config)
            _check_memory(self)
            initialise(self)

    @classmethod
    def _from_config(cls, config, dtype=None, torch_dtype=None, attn_implementation=None, **_):
        """A model with fresh weights; `Model(config)` in transformers' words."""
        return cls(config).to(dtype if dtype is not None else torch_dtype)

    from_config = _from_config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass: `model(...)`."""
        return self(*args, **kwargs)

    def can_generate(self) -> bool:
        return hasattr(type(self), "generate")

    # -- mode --------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Any:
        """MindSpore's training mode, or with False the other one; returns the model."""
        return self.set_train(mode) if mode else self.eval()

    def eval(self) -> Any:
        """Ends training: nothing is recorded for a gradient any more unless it is asked for; returns the model."""
        self.set_train(False)
        self.set_grad(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Freezes or frees every parameter, but for those that are codes, which have no gradient; returns the model."""
        codes = coded_names(self)
        for name, parameter in self.parameters_and_names():
            parameter.requires_grad = requires_grad and name not in codes
        return self

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        warnings.warn("gradient checkpointing has no effect: activations are kept until a gradient was taken", stacklevel=2)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing is to be done: MindSpore returns gradients and stores none."""

    def enable_input_require_grads(self) -> None:
        """Nothing is to be done: MindSpore takes a gradient with respect to what it is asked for."""

    def gradient_checkpointing_disable(self) -> None:
        """Nothing is to be done: it is never on."""

    # -- device and dtype ----------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> Any:
        """MindSpore dtype that is computed in; matrices may be stored in another."""
        return next(cell.dtype for cell in self.modules() if isinstance(cell, Layer))

    @property
    def device(self) -> str:
        """Name of the device that MindSpore computes on: "CPU" or "Ascend"."""
        return ms.get_context("device_target")

    @property
    def hf_device_map(self) -> dict[str, str]:
        """Where the parts are: all of them on the one device of this process."""
        return {"": self.device}

    @exclusive
    def to(self, *targets: Any, dtype: Any = None, **_: Any) -> Any:
        """In another dtype, where the device computes in it (CPU: float32 only, with a warning); devices change nothing.

        Raises:
            InputError: what is neither a device nor a floating-point dtype.
        """
        for target in (*targets, dtype):
            if target is None or isinstance(target, (bool, int)) or is_device(target):
                continue
            self._cast(getattr(target, "dtype", target))
        return self

    def _cast(self, dtype):
        name = str(dtype).lower().rpartition(".")[2]
        name = name if name == "bfloat16" else as_dtype(dtype).name
        if name not in ("bfloat16", "float16", "float32", "float64"):
            raise InputError(f"a model cannot be had in {name}; expected float32, bfloat16 or float16")
        chosen = setup("float32" if name == "float64" else name).dtype  # warns where the device does not compute in it
        if name == "float32":
            stored = [path + leaf for path, layer in layers_in(self) for leaf in layer.bfloat16]
            widen(self, stored)
            if stored:
                self._forget_steps()
        for parameter in self.get_parameters():
            if parameter.dtype != dtype_of(parameter, chosen):
                parameter.set_dtype(chosen)
                self._forget_steps()
        for _, layer in layers_in(self):
            if layer.coded or layer.bfloat16:
                layer.computed = chosen

    def float(self) -> Any:
        return self.to("float32")

    def double(self) -> Any:
        """float32, the widest dtype that is computed in."""
        warnings.warn("models are computed in float32 at most; float64 weights become float32", stacklevel=2)
        return self.to("float32")

    def half(self) -> Any:
        return self.to("float16")

    def bfloat16(self) -> Any:
        return self.to("bfloat16")

    def cpu(self, *_: Any, **__: Any) -> Any:
        """Itself: the device is MindSpore's, chosen by `mindspore.set_device`."""
        return self

    cuda = npu = cpu

    # -- parameters ----------------------------------------------------------------------------------------------------

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return iter(self.get_parameters(expand=recurse))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        return self.parameters_and_names(name_prefix=prefix, expand=recurse)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter of that name. Raises `AttributeError` when there is none."""
        found = dict(self.parameters_and_names())
        if target not in found:
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}")
        return found[target]

    get_parameter_or_buffer = get_parameter

    def get_memory_footprint(self, *_: Any, **__: Any) -> int:
        """Bytes of the weights."""
        return sum(parameter.nbytes for parameter in self.get_parameters())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are, or stand for where they are codes; without frozen ones, and without those of embedding
        tables, if so asked.
        """
        tables = set()
        if exclude_embeddings:
            cells = [cell for _, cell in self.cells_and_names() if isinstance(cell, Embedding)]
            tables = {id(parameter) for cell in cells for parameter in cell.get_parameters()}
        meant: dict[int, Any] = {}
        for _, layer in layers_in(self):
            for codes, *steps in map(layer.quantised, layer.coded):
                meant[id(codes)] = codes.size * (2 if codes.dtype == ms.uint8 else 1)
                meant.update((id(step), 0) for step in steps)
        counted = [
            parameter
            for parameter in self.get_parameters()
            if id(parameter) not in tables and (parameter.requires_grad or not only_trainable)
        ]
        return sum(meant.get(id(parameter), parameter.size) for parameter in counted)

    def modules(self) -> Iterator[nn.Cell]:
        return (cell for _, cell in self.cells_and_names())

    def named_modules(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Cell]]:
        return self.cells_and_names()

    def children(self) -> Iterator[nn.Cell]:
        return iter(self.cells())

    def get_submodule(self, target: str) -> nn.Cell:
        """The cell of that path ("model.layers.0"; "": the model). Raises `AttributeError` when there is none."""
        found = dict(self.cells_and_names())
        if target not in found:
            raise AttributeError(f"{type(self).__name__} has no submodule {target!r}")
        return found[target]

    def named_children(self) -> Iterator[tuple[str, nn.Cell]]:
        return iter(self.name_cells().items())

    # -- embeddings ----------------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> Any:
        """The model without its head, or itself."""
        return getattr(self, self.base_model_prefix, self)

    def get_decoder(self) -> Any:
        """The decoder stack of a model that has a head, else the model itself."""
        return getattr(self, "model", self)

    def get_input_embeddings(self) -> Any:
        """The layer that inputs go through first, or None."""
        return getattr(self, "input_layer", None)

    def get_output_embeddings(self) -> Any:
        """The head that makes logits (the embedding itself where they are tied), or None."""
        return getattr(self, "output_layer", None)

    def set_input_embeddings(self, value: Any) -> None:
        self._exchange(self.get_input_embeddings(), value)

    def set_output_embeddings(self, value: Any) -> None:
        self._exchange(self.get_output_embeddings(), value)

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Nothing is to be done: a tied head is the embedding itself."""

    @exclusive
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """Gives the vocabulary another size, in embedding, head and configuration; returns the embedding.

        New rows are the mean of the old ones, or with mean_resizing=False random as in a new model. An optimizer that was made
        before holds the old parameters. Raises `InputError` for a part without a vocabulary, and under a parallel plan.
        """
        table, head = self.get_input_embeddings(), self.get_output_embeddings()
        if not isinstance(table, Embedding):
            raise InputError(f"{type(self).__name__} has no vocabulary that could be resized")
        if getattr(self, "process_group", None) is not None:
            raise InputError("a vocabulary that is spread over processes cannot be resized; load with parallel=None")
        size = table.size if new_num_tokens is None else int(new_num_tokens)
        size += -size % (pad_to_multiple_of or 1)
        config = getattr(self.config, "text_config", self.config)
        if size < 1 or size == table.size:
            if size < 1:
                raise InputError(f"new_num_tokens is {new_num_tokens}, expected at least 1")
            return table
        deviation = None if mean_resizing else getattr(config, "initializer_range", None) or RANGE
        for layer in [table] if head is None or head is table else [table, head]:
            layer.resize(size, deviation)
        config.vocab_size = size
        self._forget_steps()
        return table

    def _exchange(self, old, new):
        for cell in self.modules():
            for name, part in cell.name_cells().items():
                if part is old and old is not None:
                    setattr(cell, name, new)
                    self._forget_steps()
                    return
        raise InputError(f"{type(self).__name__} has no such embedding")

    def _forget_steps(self):
        """What was compiled or prepared for the weights as they were."""
        for cell in self.modules():
            if hasattr(cell, "own_engine"):
                cell.own_engine = None
            if hasattr(cell, "prepared_frame"):
                cell.prepared_frame = None

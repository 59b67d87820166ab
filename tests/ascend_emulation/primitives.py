"""Kernels in numpy in the place of primitives of MindSpore, whose own signatures bind the arguments of every call."""

import functools
import inspect

from mindspore import Tensor

TENSORS = {"a tensor": "", "a list": "[0]"}  # what `_kind` says of them -> what is added to the name


def stand_in(primitive, make_kernel):
    """What replaces the class of a primitive: a function of its settings that returns a function of its inputs.

    make_kernel: from the names of the tensors that are given, in order (`x[0]` for the one tensor of a list), and all other
    arguments that are not None, to the `Kernel` that takes these tensors; asked once for each kind of call. Both functions
    are parsed by MindSpore's compiler, so they are written for it.
    """
    settings, setting_defaults = _parameters(primitive.__init__)
    inputs, input_defaults = _parameters(primitive.__call__)
    defaults = {**dict(setting_defaults), **dict(input_defaults)}

    @functools.cache
    def kernel_of(made, made_names, given, names):
        at, last = len(made) - len(made_names), len(given) - len(names)
        found = [
            *zip(settings, made[:at]),
            *zip(made_names, made[at:]),
            *zip(inputs, given[:last]),
            *zip(names, given[last:]),
        ]
        tensors = tuple(name + TENSORS[value] for name, value in found if value in TENSORS)
        others = {**defaults, **{name: value for name, value in found if value not in TENSORS}}
        others = {name: value for name, value in others.items() if value is not None and name not in tensors}
        kernel = make_kernel(tensors, **others)
        kernel.called = primitive.__name__, tensors, others
        return kernel

    def make(*made, **made_named):
        made_values, made_names = (*made, *made_named.values()), tuple(made_named.keys())

        def call(*args, **named):
            values, names = (*args, *named.values()), tuple(named.keys())
            kernel = kernel_of(made_values, made_names, tuple([_kind(value) for value in values]), names)
            return kernel(*[_first(value) for value in values if isinstance(value, (Tensor, list))])

        return call

    return make


def _kind(value):
    """What of an argument decides the kernel: that it is a tensor or a list of them, or else the argument itself."""
    if isinstance(value, Tensor):
        return "a tensor"
    return "a list" if isinstance(value, list) else value


def _first(value):
    return value[0] if isinstance(value, list) else value


def _parameters(function):
    """The names of a method's parameters and of what nobody takes, and (name, default) of those that have one."""
    parameters = [item for item in inspect.signature(function).parameters.values() if item.name != "self"]
    defaults = tuple((item.name, item.default) for item in parameters if item.default is not item.empty)
    return (*(item.name for item in parameters), "one_too_many"), defaults

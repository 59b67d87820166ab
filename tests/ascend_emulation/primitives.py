"""Kernels in numpy in the place of primitives of MindSpore, whose own signatures bind the arguments of every call."""

import functools
import inspect

from mindspore import Tensor


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
    def kernel_of(tensors, names, values):
        others = {**defaults, **dict(zip(names, values))}
        others = {name: value for name, value in others.items() if value is not None and name not in tensors}
        kernel = make_kernel(tensors, **others)
        kernel.called = primitive.__name__, tensors, others
        return kernel

    def make(*args, **named):
        made = list(zip(settings, args)) + [(name, named[name]) for name in named]

        def call(*args, **named):
            given = list(zip(inputs, args)) + [(name, named[name]) for name in named]
            given = made + [(name, value) for name, value in given if value is not None]
            tensors = [_first(name, value) for name, value in given if isinstance(value, (Tensor, list))]
            others = [(name, value) for name, value in given if not isinstance(value, (Tensor, list))]
            kernel = kernel_of(
                tuple([name for name, _ in tensors]),
                tuple([name for name, _ in others]),
                tuple([value for _, value in others]),
            )
            return kernel(*[tensor for _, tensor in tensors])

        return call

    return make


def _first(name, value):
    return (name + "[0]", value[0]) if isinstance(value, list) else (name, value)


def _parameters(function):
    """The names of a method's parameters and of what nobody takes, and (name, default) of those that have one."""
    parameters = [item for item in inspect.signature(function).parameters.values() if item.name != "self"]
    defaults = tuple((item.name, item.default) for item in parameters if item.default is not item.empty)
    return (*(item.name for item in parameters), "one_too_many"), defaults

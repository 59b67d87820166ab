"""What the processor returns: a mapping of arrays."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np

from ms_omni.arrays import HostArray
from ms_omni.errors import InputError


class ModelInputs(UserDict):
    """Model inputs by name, as keys and as attributes; `model.generate(**inputs)` takes them as they are."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(f"The model inputs have no {name!r}; they have {', '.join(self.__dict__.get('data', ()))}.")
        return self.data[name]

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Cast the floating-point arrays when a dtype is among the arguments, and return the inputs.

        Devices and `non_blocking` have no effect: the model takes arrays from the host, and casts them itself as well.
        """
        targets = [arg for arg in (*args, kwargs.get("dtype")) if _is_float_type(arg)]
        for name, value in self.data.items() if targets else ():
            if _is_float_type(getattr(value, "dtype", None)) and hasattr(value, "to"):
                self.data[name] = value.to(targets[0])
        return self

    def convert_to_tensors(self, tensor_type: Any = None, **_: Any) -> ModelInputs:
        """The same inputs in the form that `return_tensors` names.

        Args:
            tensor_type: None or "pt": numpy arrays that also answer to the methods which scripts for PyTorch call
                (`HostArray`); "np": plain numpy arrays; "ms": MindSpore tensors.

        Raises:
            InputError: any other framework.
        """
        kind = getattr(tensor_type, "value", tensor_type)
        if kind in (None, "pt"):
            convert = HostArray.of
        elif kind == "np":
            convert = np.asarray
        elif kind == "ms":
            import mindspore

            convert = mindspore.Tensor
        else:
            raise InputError(
                f"return_tensors is {kind!r}; expected None, 'np', 'ms' for MindSpore tensors, or 'pt' for arrays that can do "
                "what scripts for PyTorch ask of tensors."
            )
        return ModelInputs(
            {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in self.data.items()}
        )


def _is_float_type(dtype: Any) -> bool:
    """Whether this names a floating-point type of numpy, MindSpore or PyTorch ("torch.bfloat16", `Float16`)."""
    return dtype is not None and "float" in str(getattr(dtype, "__name__", dtype)).lower()

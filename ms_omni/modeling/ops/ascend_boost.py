"""The switch `MS_OMNI_BOOST`: decode layers in kernels that come with MindSpore (infer_boost), two launches fewer each."""

import os

VARIABLE = "MS_OMNI_BOOST"
DISABLED = "MS_DISABLE_INTERNAL_KERNELS_LIST"
"""Kernels of its own that MindSpore is not to take, by name; it reads this when it chooses the first one."""


def wanted() -> bool:
    """Whether the switch is on. Raises `ValueError` for a value that it does not have."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(
            f"{VARIABLE}={value!r} is neither 1 (boosted decode layers, on Ascend) nor 0; set one of them or unset it"
        )
    return value == "1"


def prepare() -> None:
    """Where the switch is on: keeps MindSpore from its own SwiGLU, which wants an attribute that only its fusions set, and raises without
    it. What the user has listed stays.
    """
    names = [name for name in os.environ.get(DISABLED, "").split(",") if name]
    if wanted() and "Swiglu" not in names:
        os.environ[DISABLED] = ",".join([*names, "Swiglu"])

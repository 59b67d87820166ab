"""Settings of HCCL, CANN's collectives, for many small messages: what each type of card is given, and why.

A token of text takes two small sums per layer, so what counts is how soon a sum begins, not how much it moves. HCCL reads its
environment when it starts, so these are set just before (`mesh.py`), and only where the user has said nothing.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

CANN = "hiascend.com/document/detail/zh/canncommercial/900/maintenref/envvar/envref_07_"
"""Beginning of the pages on environment variables of CANN 9.0; those of 8.0 to 8.5 say the same but for what is noted."""


@dataclass(frozen=True)
class Setting:
    """A variable and its value, or None where CANN's own is right; why, and the source of that."""

    name: str
    value: str | None
    why: str
    source: str


# AIV is documented for inference, for cards that are joined alike, and for one communicator at work at a time, which is what we
# have. What it does not know (types, operators, several supernodes) HCCL does as it would without it.
COMMON = (
    Setting(
        "MS_ENABLE_LCCL",
        "off",
        "graphs with infer_boost communicate as the others do, and not by MindSpore's second library",
        "MindSpore, EnableLccl: on with infer_boost unless 'off'; so vllm-mindspore's tests and deployments, beside AIV",
    ),
    Setting(
        "HCCL_BUFFSIZE",
        None,
        "CANN's 200 MB, twice, hold every message of 'ep'; 'zero3' gathers up to 805 MB at once",
        f"{CANN}0080.html",
    ),
    Setting("HCCL_DETERMINISTIC", None, "true gives sums one order, and goes before AIV", f"{CANN}0099.html"),
)
SETTINGS = {
    "910b": (
        Setting(
            "HCCL_OP_EXPANSION_MODE",
            "AIV",
            "a sum is started by the card's vector cores, not by the host for each",
            f"{CANN}0096.html (since 8.0; default HOST); vllm-mindspore and vllm-ascend set it on 910B",
        ),
        *COMMON,
    ),
    "910c": (
        Setting(
            "HCCL_OP_EXPANSION_MODE",
            "AIV",
            "a sum is started by the card's vector cores, not by its AI CPU; the order of a sum over more than two is then open",
            f"{CANN}0096.html (default AI_CPU; within a supernode); sglang's and vllm-ascend's guides set it on A3; "
            "github.com/xLLM-AI/xllm/pull/1988 for small sums",
        ),
        *COMMON,
    ),
}
"""By the names of `configs/hardware`."""

_ours: set[str] = set()


def apply(card: str | None) -> None:
    """Sets what the user has not, in this process. card: see `runtime.card`; for one that is unknown nothing is set."""
    for setting in SETTINGS.get(card or "", ()):
        if setting.value is not None and setting.name not in os.environ:
            os.environ[setting.name] = setting.value
            _ours.add(setting.name)


def in_force(card: str | None) -> Iterator[str]:
    """A line for each setting of a card as it is in this process: value, who set it, and why."""
    for setting in SETTINGS.get(card or "", ()):
        now = os.environ.get(setting.name)
        if now is None:
            yield f"{setting.name} is left to CANN: {setting.why} ({setting.source})"
        elif setting.name in _ours:
            yield f"{setting.name}={now}, set by ms_omni: {setting.why} ({setting.source})"
        else:
            ours = "" if setting.value in (None, now) else f"; ms_omni would set {setting.value}"
            yield f"{setting.name}={now}, set by you{ours}: {setting.why} ({setting.source})"

"""Which tool quantised a checkpoint: read off its configuration files."""

import json
from collections.abc import Mapping
from pathlib import Path

from ms_omni.errors import CheckpointError
from ms_omni.files import read_text

from .compressed import CompressedTensors
from .fp8 import Fp8
from .gptq import Awq, Gptq
from .matrix import Layout
from .mlx import FORMAT, Mlx
from .modelslim import DESCRIPTION, ModelSlim

READ = "AutoRound, GPTQ, AWQ (gemm), compressed-tensors, FP8, msModelSlim (W8A8, W8A16) and MLX (affine)"
SECTIONS = ((), ("thinker_config",), ("thinker_config", "text_config"), ("text_config",), ("talker_config",))
KEYS = ("quantization_config", "compression_config")
FILES = ("quantize_config.json", "quantization_config.json", "quant_config.json")  # of older GPTQ, auto-round, AWQ
ASCEND = "ascend"  # as vLLM calls msModelSlim
ROUND_PLAIN = ("auto_round", "auto_round:exllamav2", "auto_round:tritonv2")  # auto-round's own, zero points as they are


def layout_of(folder: Path, config: Mapping) -> Layout | None:
    """How the matrices of a folder are written by the tool that quantised it, None where nothing says that one did.

    config: the content of config.json.

    Raises CheckpointError for a method that is not read, with its name.
    """
    said, path = quantisation(folder, config)
    if said is None:
        return None
    described = sorted(folder.glob(DESCRIPTION))
    if described and said.get("quant_method") in (ASCEND, None):
        return ModelSlim(_json(described[0]))
    try:
        return _layout(said, f"{path}: ")
    except (TypeError, ValueError, AttributeError) as error:  # CheckpointError is a ValueError too
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: what it says of quantised weights cannot be understood ({error}).") from None


def quantisation(folder: Path, config: Mapping) -> tuple[Mapping | None, Path | None]:
    """(what config.json or a file beside it says of how the weights were quantised, where), (None, None) without."""
    for section in SECTIONS:
        part = config
        for key in section:
            part = part.get(key) if isinstance(part, Mapping) else None
        for key in KEYS if isinstance(part, Mapping) else ():
            if part.get(key):
                said = part[key]
                if not isinstance(said, Mapping):
                    raise CheckpointError(
                        f"{folder / 'config.json'}: {key} is {said!r:.80}, expected an object with quant_method"
                    )
                if "quant_method" not in said and isinstance(config.get("quantization"), Mapping):
                    break  # MLX writes both
                return said, folder / "config.json"
    if isinstance(config.get("quantization"), Mapping):
        return {"quant_method": FORMAT, **config["quantization"]}, folder / "config.json"
    for name in (*FILES, "hf_quant_config.json"):
        if (folder / name).is_file():
            said = _json(folder / name)
            return {"quant_method": _method_of(name, said), **said}, folder / name
    described = sorted(folder.glob(DESCRIPTION))
    return ({"quant_method": ASCEND}, described[0]) if described else (None, None)


def _method_of(name, said) -> str:
    if name == "hf_quant_config.json":
        return str((said.get("producer") or {}).get("name", "modelopt"))
    return "auto-round" if name == FILES[1] else "awq" if name == FILES[2] or "w_bit" in said else "gptq"


def _layout(said: Mapping, where: str) -> Layout:
    method = str(said.get("quant_method", "unknown")).lower()
    if method in ("auto-round", "intel/auto-round", "autoround"):
        return _auto_round(said, where)
    if method == "gptq":
        form = said.get("checkpoint_format", said.get("format", "gptq"))
        if form in ("gptq", "gptq_v2"):
            return Gptq(said, "GPTQ", minus_one=form == "gptq")
        raise _not_read(f"GPTQ in form {form}", where)
    if method == "awq":
        form = str(said.get("checkpoint_format", said.get("format", said.get("version", "gemm")))).lower()
        if form == "gemm":
            return Awq(said, "AWQ")
        raise _not_read(f"AWQ in form {form}", where)
    if method == "compressed-tensors" or (method == "unknown" and "config_groups" in said):
        return CompressedTensors(said)
    if method in ("fp8", "fbgemm_fp8"):
        return Fp8(said, method.upper())
    if method == FORMAT:
        return Mlx(said)
    if method == ASCEND:
        raise CheckpointError(
            f"{where}the weights are quantised by msModelSlim, but quant_model_description.json is missing"
        )
    raise _not_read(method, where)


def _auto_round(said, where) -> Layout:
    form = str(said.get("packing_format", said.get("backend", "auto_round:auto_gptq")))
    if "awq" in form:
        return Awq(said, "AutoRound")
    if "gptq" in form or form in ROUND_PLAIN:
        return Gptq(said, "AutoRound", minus_one="gptq" in form and "gptqmodel" not in form)
    raise _not_read(f"AutoRound in packing_format {form}", where)


def _not_read(method, where) -> CheckpointError:
    return CheckpointError(
        f"{where}the weights are quantised by a method that is not read: {method}. Read are {READ}; take a checkpoint in one of "
        "these, or the one that it was made from (it can be quantised with `ms-omni convert --quantize`)."
    )


def _json(path: Path) -> dict:
    try:
        content = json.loads(read_text(path))
        assert isinstance(content, dict)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON object: {type(error).__name__}: {error}. Fetch it again.") from None
    return content


def dtype_of(config: Mapping) -> str | None:
    """The dtype that config.json names for the model."""
    for section in (config, config.get("thinker_config"), (config.get("thinker_config") or {}).get("text_config")):
        for key in ("dtype", "torch_dtype") if isinstance(section, Mapping) else ():
            if section.get(key):
                return str(section[key])
    return None

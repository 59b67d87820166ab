"""`from_pretrained` of the model classes: arguments first, then configuration and headers, then MindSpore's cells, then weights."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, InputError, OmniError, caller_level, warn_once
from .hub import resolve
from .load_arguments import MODEL, asked_dtype, check_attention, check_quantize, sort_out
from .quantised import Storage
from .runtime import require_mindspore, setup, uncollected

require_mindspore()

from .checkpoint import load_rank_file  # noqa: E402  (needs MindSpore)
from .checkpoint.load import fill_cell  # noqa: E402
from .checkpoint.matching import check_counts, file_root, layers_beyond, plan_loading  # noqa: E402
from .checkpoint.open import open_checkpoint, reader_of  # noqa: E402
from .checkpoint.reader import StateReader  # noqa: E402
from .checkpoint.shapes import component_shapes  # noqa: E402
from .checkpoint.storage import (  # noqa: E402
    is_quantised,
    storages,
    stored_in,
)
from .checkpoint.storage import scheme as quantisation_scheme  # noqa: E402
from .config import Qwen3OmniMoeConfig, read_config_json  # noqa: E402
from .generation.options import GenerationConfig  # noqa: E402
from .locking import exclusive, restore_interrupts  # noqa: E402
from .model_object import ModelObject  # noqa: E402
from .modeling import ops  # noqa: E402
from .modeling.layer import BFLOAT16, exchange, lazy_parameters, storable  # noqa: E402
from .parallel import watch  # noqa: E402
from .parallel.group import AUTO, choose_strategy, is_shared, join  # noqa: E402
from .parallel.mesh import start  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of `from_pretrained` asks for; `where`: the arguments of `hub.resolve`."""

    name: object
    where: dict
    changes: dict
    config: object = None
    generation_config: object = None
    state_dict: object = None
    variant: str | None = None
    key_mapping: dict | None = None
    output_loading_info: bool = False
    ignore_mismatched_sizes: bool = False
    dtype: str | None = None
    quantize: str | None = None
    quantize_group: int | None = None
    quantize_embeddings: bool = False


REQUEST_OPTIONS = {field.name for field in dataclasses.fields(Request)} & set(MODEL)
"""Keyword arguments that go into it as they are."""


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """Weights that fit a configuration: how they are read, and how parameters are stored: as `codes`, or in `bfloat16`."""

    reader: Any
    fills: list
    unused: list[str]
    codes: dict[str, Storage]
    bfloat16: set[str]

    def storages(self, storable: set[str]) -> tuple[dict[str, Storage], dict[str, str]]:
        """Of those parameters whose storage can be chosen: codes, and what is bfloat16."""
        codes = {name: storage for name, storage in self.codes.items() if name in storable}
        return codes, dict.fromkeys((self.bfloat16 & storable) - codes.keys(), BFLOAT16)


class LoadingMixin(ModelObject):
    """Builds a cell and fills its parameters, which carry the checkpoint's names behind `checkpoint_prefix`."""

    config_class: Any = None
    checkpoint_prefix = ""
    name_or_path = ""
    process_group: Any = None  # the ranks that hold the model together, see `parallel.group.ProcessGroup`

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *,
        progress: bool = True,
        compile_steps: bool = True,
        parallel: str | None = AUTO,
        split_heads: bool | None = None,
        quantize: str | None = None,
        quantize_group: int | None = None,
        quantize_embeddings: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Builds the model of a checkpoint and fills it tensor by tensor.

        Args:
            pretrained_model_name_or_path: a folder with config.json and model.safetensors or shards with an index (bf16,
                fp16 or fp32), as published or as `ms-omni convert` wrote it; or a model's name, looked up in the caches of
                both hubs and else downloaded (see `hub.resolve`, whose arguments are taken: cache_dir, revision,
                local_files_only, force_download, token, proxies, subfolder). None with `config` and `state_dict`.
            dtype, torch_dtype, mindspore_dtype: dtype to compute in; default and "auto": the device's own (float32 on CPU,
                bfloat16 on Ascend). On CPU matrices that the folder holds in bfloat16 stay so in memory, which is half as much to
                read and the same numbers; dtype="float32" widens them, for an optimizer of the caller's own perhaps.
            attn_implementation, use_flash_attention_2: all choices mean the same numbers; the device's kernels are used.
            config: a configuration, a dict or a folder, instead of the checkpoint's; it has to fit the weights, but may have
                fewer layers (which gives a warning).
            enable_audio_output: False leaves talker and code2wav out.
            generation_config: end and padding ids instead of generation_config.json's.
            state_dict: arrays by name, instead of the folder's weights.
            key_mapping: {regular expression: replacement} for the stored names.
            variant: of the files' names, such as "fp16".
            output_loading_info: return (model, what fitted).
            progress: whether a long load or a download shows a bar on a terminal.
            compile_steps: turn the steps of generation into compiled graphs once they have run for a while, on Ascend when an
                engine starts; the numbers are the same either way.
            parallel: how the processes that msrun started share the model: "ep" (experts, attention heads and vocabulary
                split; the default, "auto", under msrun), "zero3" (everything split, gathered when used) or None (each
                process holds a model of its own, for `prepare_network` perhaps; the default in MindSpore's data-parallel
                mode).
            split_heads: for "ep", whether attention heads are split; by default where they divide.
            quantize: "int8" (one scale per output) or "int4" (one per group of inputs): the matrices that
                `checkpoint/storage.py` lists are rounded to these while they are read, a tensor at a time. A folder
                that is quantised already is loaded as it is stored; leave it out there.
            quantize_group: inputs that share a scale, 128, 64 or 32; by default the largest that divides all matrices.
            quantize_embeddings: whether the table of tokens has 8 bits too.
            **kwargs: fields of the configuration, to be changed. What transformers knows and has no effect here
                (device_map, trust_remote_code, ...) gives a warning.

        Raises:
            InputError: arguments that are unknown or that would change answers and cannot be honoured, before anything
                is read.
            CheckpointError: with every problem found, before anything is built or allocated.
        """
        where, options = sort_out(kwargs, cls.__name__, MODEL, config_words(cls.config_class))
        dtype = asked_dtype(options)
        check_quantize(quantize, quantize_group, quantize_embeddings)
        attention = check_attention(options)
        own = {word: options.pop(word) for word in REQUEST_OPTIONS & options.keys()}
        own |= {"dtype": dtype, "quantize": quantize, "quantize_group": quantize_group}
        name = pretrained_model_name_or_path
        changes = {word: value for word, value in options.items() if value is not None}
        request = Request(name, {**where, "progress": progress}, changes, quantize_embeddings=quantize_embeddings, **own)
        if name is None and (request.config is None or request.state_dict is None):
            raise InputError(f"{cls.__name__}.from_pretrained needs a folder or name, or config= and state_dict=")
        check_patterns(request.key_mapping)
        model, report = cls._load(request, dtype, progress, compile_steps, parallel, split_heads)
        model.name_or_path = "" if name is None else str(name)
        if isinstance(attention, str):
            model.config._attn_implementation = attention
        return (model, report) if request.output_loading_info else model

    @classmethod
    def _load(cls, request, dtype, progress, compile_steps, parallel, split_heads):
        options = {} if split_heads is None else {"split_heads": split_heads}
        if is_shared(parallel) and request.name is not None:
            start()  # first of all, so that no rank waits for this process while it downloads
        folder, missing = cls._find(request)
        rank_index = None
        if folder is not None:
            parallel, options, rank_index = choose_strategy(folder, parallel, options)
        group = join(parallel, **options)
        prefix = cls.checkpoint_prefix
        if group is not None and request.state_dict is not None:
            raise InputError("state_dict is not split among processes; load it with parallel=None, or from a folder")

        def read():
            if missing is not None:
                raise missing
            config = cls._configuration(folder, request)
            return config, cls._plan(config, folder, request, rank_index)

        if group is None:
            config, source = read()
        else:
            arguments = (cls.__name__, setup(dtype), compile_steps, sorted(request.changes.items()), str(request.config))
            arguments += (request.quantize, request.quantize_group, request.quantize_embeddings)
            config, source = group.check(folder, arguments, read)
        with watch.busy():
            with exclusive:
                runtime = setup(dtype)
                ops.settle(runtime.dtype)
                with lazy_parameters(runtime.dtype), uncollected():
                    model = cls(config)
                codes, bfloat16 = source.storages(storable(model))
                slices = group and group.make_slices(model, config, prefix, codes)
                exchange(model, {**codes, **bfloat16})
            if rank_index is not None:
                assert folder is not None and group is not None, "files of ranks are in a folder, and read by a group"
                shapes = {prefix + name: shape for name, shape in component_shapes(config, prefix).items()}
                report = load_rank_file(
                    model, folder, rank_index, group.mesh.rank, shapes, slices or {}, prefix=prefix, dtype=runtime.dtype
                )
            else:
                shown = progress and (group is None or group.mesh.speaks)
                report = fill_cell(
                    model,
                    source.reader,
                    source.fills,
                    source.unused,
                    prefix=prefix,
                    dtype=runtime.dtype,
                    progress=shown,
                    slices=slices,
                    storages=codes,
                )
            if group is not None:
                group.attach(model)
        restore_interrupts()  # a thread of MindSpore 2.10 may have put its own there meanwhile, see `runtime.py`
        model.set_train(False)
        for cell in (model, *model.cells()):
            if not compile_steps and hasattr(cell, "compile_after"):
                cell.compile_after = None
        model._loaded(folder, request)
        return model, loading_info(report)

    def _loaded(self, folder, request):
        """Called when all weights are there."""
        self.generation_config = generation_config(folder, request.generation_config)

    @classmethod
    def _find(cls, request):
        """(folder, None), or (None, the error that there is no such folder), which all ranks are to report."""
        if request.name is None:
            return None, None

        def check(settings):
            cls._configuration(settings, request)

        try:
            return resolve(request.name, weights=request.state_dict is None, check=check, **request.where), None
        except InputError:
            raise
        except OmniError as error:
            return None, error

    @classmethod
    def _plan(cls, config, folder, request, rank_index):
        """The `LoadPlan` of weights that fit the configuration. Raises `CheckpointError` for others."""
        prefix = cls.checkpoint_prefix
        keeps = request.dtype != "float32" and keeps_bfloat16()
        if rank_index is not None:
            if request.quantize is not None:
                raise InputError(
                    f"{folder} is cut for ranks, whose files are read as they are; leave quantize= out, and cut with "
                    "ms-omni convert --quantize --shards"
                )
            check_counts(config, rank_index.parameters, prefix, folder)
            own = {name: kind for name, kind in rank_index.storages.items() if name.startswith(prefix)}
            codes = {name.removeprefix(prefix): Storage(**kind) for name, kind in own.items()}
            known = rank_index.parameters if rank_index.dtype == "BF16" and keeps else ()
            bfloat16 = {name.removeprefix(prefix) for name in known if name.startswith(prefix)}
            return LoadPlan(None, [], [], codes, bfloat16)
        if request.state_dict is not None:
            reader = StateReader(request.state_dict)
        else:
            reader = open_checkpoint(folder, request.variant, request.key_mapping)
        root = file_root(reader.entries)
        stored = {root + name: entry.shape for name, entry in reader.entries.items()}
        check_counts(config, stored, prefix, reader.folder)
        asked = request.config is not None or request.changes  # what the folder's own configuration leaves out is damage
        spare = layers_beyond(config, stored, prefix) if asked else ()
        if spare:
            message = f"{len(spare)} stored tensors of layers beyond those that the configuration asks for are left out"
            warn_once(f"from_pretrained: {message}", stacklevel=caller_level())
        shapes = component_shapes(config, prefix)
        try:
            fills, unused = plan_loading(shapes, reader, prefix, spare)
        except CheckpointError as error:
            if not request.ignore_mismatched_sizes:
                raise
            left_out = "ignore_mismatched_sizes=True would leave such weights untrained, which is not supported"
            raise CheckpointError(f"{error}\n{left_out}") from None
        scheme = cls._scheme(config, folder, request)
        codes = storages(fills, reader, scheme, prefix)
        bfloat16 = stored_in(fills, reader, "BF16") if keeps else set()
        return LoadPlan(reader, fills, unused, codes, bfloat16)

    @classmethod
    def _scheme(cls, config, folder, request):
        """How `quantize` stores the matrices, None for as they are. A part has the groups of the whole model that its folder holds."""
        prefix = cls.checkpoint_prefix
        shapes = {prefix + name: shape for name, shape in component_shapes(config, prefix).items()}
        if request.quantize is None or not is_quantised(shapes):
            return None
        if request.quantize_group is None and folder is not None and "thinker_config" in read_config_json(folder)[0]:
            shapes = component_shapes(Qwen3OmniMoeConfig.from_pretrained(folder), "") | shapes
        return quantisation_scheme(shapes, request.quantize, request.quantize_group, request.quantize_embeddings)

    @classmethod
    def _configuration(cls, folder, request):
        """The configuration asked for: the folder's or the one given, with the changes. Raises `ConfigError`."""
        if request.config is None:
            config = cls._read_config(folder)
        elif isinstance(request.config, (str, Path)):
            config = cls._read_config(resolve(request.config, weights=False))
        else:
            config = cls._given_config(request.config)
        if folder is not None:
            reader_of(folder)  # checkpoints of other formats are not downloaded
        return changed(config, request.changes)

    @classmethod
    def _read_config(cls, folder):
        return cls.config_class.from_pretrained(folder)

    @classmethod
    def _given_config(cls, config):
        """`config`, or this component's section of a whole model's."""
        section = f"{cls.checkpoint_prefix[:-1]}_config"
        part = config.get(section, config) if isinstance(config, Mapping) else getattr(config, section, config)
        return part if isinstance(part, cls.config_class) else cls.config_class.from_dict(part, "config")


def check_patterns(mapping: Mapping[str, str] | None) -> None:
    """Raises `InputError` for a `key_mapping` that holds anything but regular expressions and replacements."""
    try:
        for old, new in (mapping or {}).items():
            re.sub(old, new, "")
    except (re.error, TypeError) as error:
        raise InputError(f"key_mapping is no table of regular expressions and replacements: {error}") from None


def keeps_bfloat16() -> bool:
    """Whether matrices in bfloat16 stay so where float32 is computed in: on CPU, where there are kernels for that."""
    return require_mindspore().get_context("device_target") == "CPU" and ops.keeps_bfloat16()


def config_words(kind: Any) -> set[str]:
    """Words that change a configuration of the class: its fields, and those of its text decoder."""
    text = kind.sub_configs.get("text_config")
    return {*kind.model_fields, *kind.attribute_map, *(text.model_fields if text else ())}


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a configuration with some values changed, those of the text decoder by their own names; `ConfigError`."""
    own = {word: value for word, value in changes.items() if hasattr(config, word)}
    inner = {word: value for word, value in changes.items() if word not in own}
    return config.copy(**own, **({"text_config": inner} if inner else {})) if changes else config


def generation_config(folder: str | Path | None, given: Any) -> GenerationConfig:
    """The defaults of generation: the folder's, and over them those of a generation config (an object or a dict)."""
    config = GenerationConfig() if folder is None else GenerationConfig.from_pretrained(folder)
    given = given.to_diff_dict() if hasattr(given, "to_diff_dict") else given
    if not isinstance(given, (Mapping, type(None))):
        raise InputError(f"generation_config is {given!r}, expected a GenerationConfig or a dict")
    config.update(**(given or {}))
    return config


def loading_info(report: Any) -> dict:
    """What transformers returns with `output_loading_info`: whatever does not fit has been an error before."""
    return {"missing_keys": [], "unexpected_keys": list(report.unused), "mismatched_keys": [], "error_msgs": []}

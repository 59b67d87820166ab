"""Who imports whom, and how long files are. Read off the source with ast."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    path.relative_to(ROOT).as_posix(): path for folder in ("ms_omni", "launch") for path in (ROOT / folder).rglob("*.py")
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
MODULES = sorted(name for name in FILES if name.startswith("ms_omni/"))
STANDARD = set(sys.stdlib_module_names)
MODELING = {
    "mindspore",
    "numpy",
    "ms_omni.modeling",
    "ms_omni.errors",
    "ms_omni.locking",
    "ms_omni.outputs",
    "ms_omni.arrays",
    "ms_omni.quantised",
    "ms_omni.ascend",
}
TOKENIZER_CODE = ("ms_omni/input/", "ms_omni/media.py")
TORCH = {"torch", "torchvision", "torchaudio", "librosa"}
COLLECTIVES, MESH = "ms_omni/parallel/collectives.py", "ms_omni/parallel/mesh.py"
LONGEST = 450


def imports(name):
    """Full names of everything that a file imports, at any depth: `from a import b` gives `a.b`."""
    package = name.removesuffix(".py").removesuffix("/__init__").split("/")
    if not name.endswith("/__init__.py"):
        package = package[:-1]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def under(imported, *packages):
    return any(imported == package or imported.startswith(package + ".") for package in packages)


def test_imports_are_resolved():
    """The other tests rest on this reading of relative imports."""
    assert "ms_omni.errors.InputError" in imports("ms_omni/modeling/positions.py")
    assert "ms_omni.modeling.ops" in imports("ms_omni/modeling/cache.py")
    assert "ms_omni.modeling.ops.dispatch.operator" in imports("ms_omni/modeling/ops/__init__.py")


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("ms_omni/modeling/")])
def test_modeling_knows_only_itself(name):
    allowed = MODELING | STANDARD
    assert not {item for item in imports(name) if not under(item, *allowed)}


@pytest.mark.parametrize("name", MODULES)
def test_compute_calls_stand_only_with_the_operators(name):
    """Gathering them in one place is what lets a kernel be replaced."""
    if name.startswith("ms_omni/modeling/ops/") or name == COLLECTIVES:
        return
    forbidden = ("mindspore.mint", "mindspore.ops", "mindspore.numpy", "mindspore.nn.functional")
    assert not {item for item in imports(name) if under(item, *forbidden)}
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "mindspore"
    }
    reached = {
        node.attr
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }
    assert not reached & {"mint", "ops", "numpy"}


def test_processes_talk_in_one_place_only():
    """The collectives are counted there, so nothing may be communicated anywhere else; joining is for the mesh."""
    used = {
        node.attr
        for node in ast.walk(TREES[COLLECTIVES])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ops"
    }
    assert used == {"AllReduce", "AllGather", "Broadcast"}
    for name in MODULES:
        if name != MESH:
            forbidden = ("mindspore.communication", "mindspore.mint.distributed")
            assert not {item for item in imports(name) if under(item, *forbidden)}
        attributes = {node.attr for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)}
        assert name == COLLECTIVES or not attributes & {"AllReduce", "AllGather", "Broadcast", "ReduceScatter", "AlltoAll"}


@pytest.mark.parametrize("name", MODULES)
def test_only_the_public_classes_know_parallelism(name):
    if name.startswith(("ms_omni/modeling/", "ms_omni/generation/", "ms_omni/checkpoint/", "ms_omni/config/")):
        assert not {item for item in imports(name) if under(item, "ms_omni.parallel")}


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_torch(name):
    assert not {item for item in imports(name) if under(item, *TORCH)}


@pytest.mark.parametrize("name", MODULES)
def test_transformers_is_for_tokenizer_and_mel_only(name):
    if not name.startswith(TOKENIZER_CODE):
        assert not {item for item in imports(name) if under(item, "transformers", "tokenizers")}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(TOKENIZER_CODE)])
def test_the_processor_works_without_mindspore_and_without_the_model(name):
    """MindSpore is asked for in one place, when somebody wants its tensors; nothing is imported at the top."""
    top = {node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))}
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not {item for item in names if under(item, "mindspore")}
    model = [f"ms_omni.{name}" for name in ("modeling", "generation", "engine", "checkpoint", "parallel", "model", "serve")]
    assert not {item for item in imports(name) if under(item, *model)}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("ms_omni/generation/")])
def test_generation_knows_neither_files_nor_commands(name):
    beyond = (
        "ms_omni.checkpoint",
        "ms_omni.commands",
        "ms_omni.cli",
        "ms_omni.model",
        "ms_omni.input",
        "ms_omni.media",
    )
    assert not {item for item in imports(name) if under(item, *beyond)}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("ms_omni/engine/")])
def test_the_engine_knows_neither_messages_nor_servers(name):
    above = ("ms_omni.input", "ms_omni.media", "ms_omni.serve", "ms_omni.commands", "ms_omni.cli", "ms_omni.bench")
    assert not {item for item in imports(name) if under(item, *above)}


@pytest.mark.parametrize("name", MODULES)
def test_web_frameworks_are_the_server_s(name):
    if not name.startswith(("ms_omni/serve/", "ms_omni/commands/")):  # which look whether they are there
        assert not {item for item in imports(name) if under(item, "starlette", "uvicorn", "ray")}


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_the_command_line(name):
    if not name.startswith(("ms_omni/__main__.py", "ms_omni/cli.py", "ms_omni/commands/")):
        assert not {item for item in imports(name) if under(item, "ms_omni.cli", "ms_omni.commands")}


@pytest.mark.parametrize("name", MODULES)
def test_context_is_set_in_runtime_only(name):
    if name == "ms_omni/runtime.py":
        return
    called = {
        node.func.attr
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & {"set_context", "set_device", "launch_blocking"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_length(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST

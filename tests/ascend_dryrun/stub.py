"""Stand-ins for CANN's libraries, made from the names that the installed MindSpore asks for.

The x86-64 wheels of MindSpore contain its whole Ascend backend; it does not load only because CANN's libraries are not
there. With one library that has all the names (some 1,800), under all of the libraries' names, it loads, and MindSpore's
documented dry run (`MS_SIMULATION_LEVEL=1`) does everything but compute: it runs wrappers, infers types and shapes,
compiles graphs, selects and builds their kernels.

A stand-in returns 0 (success) unless `_BEHAVIOURS` or `stub.cpp` says otherwise.
"""

import ctypes
import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("stub.cpp")
_NOT_LOADED = ("op_kernels", "custom_ascendc", "custom_aicpu", "libdvpp_utils")
"""Parts of the plugin's paths that hold code for the device, and libraries that nothing here opens."""
_NAMES_NOTHING = ("libakg", "libmindspore_cpu_kernels")
"""Large libraries that look up no functions of CANN by name."""
_LOOKED_UP = re.compile(r"^(?:acl|rt|[Hh]ccl|[Hh]com|ge|ms|hal|drv|prof|ad|[Tt]dt)\w{2,}$", re.MULTILINE)
_OPENED = re.compile(r"(?:^|/)(lib\w+\.so)$", re.MULTILINE)
_ACLNN_RUNTIME = (
    ("aclnnInit", "aclnnFinalize", "InitHugeMemThreadLocal", "UnInitHugeMemThreadLocal", "ReleaseHugeMem")
    + ("PTAGetExecCache", "InitPTACacheThreadLocal", "SetPTAHashKey", "CanUsePTACache")
    + ("aclSetAclOpExecutorRepeatable", "aclDestroyAclOpExecutor")
)
_ACLNN_OBJECTS = ("Tensor", "Scalar", "IntArray", "BoolArray", "FloatArray", "TensorList", "ScalarList")
_BEHAVIOURS = (
    # C functions that create something: a pointer to zeros.
    (r"acl(?!rt)[a-z]*Create|aclopCreateAttr|aclmdlCreate", "movq stub_object@GOTPCREL(%rip),%rax\nret"),
    # Setters that return their object, for chains of calls.
    (
        r"_ZN2ge(8Operator|5Graph)(7SetAttr|8SetInput|15AddControlInput|9SetInputs|10SetOutputs|10SetTargets|20SetSubgraph)",
        "movq %rdi,%rax\nret",
    ),
    # Constructors of, and functions that return, classes that are no more than a shared pointer: an empty one.
    (
        r"_ZNK?2ge(10TensorType|7Promote|5Shape|10TensorDesc|6Tensor|5Graph|11GraphBuffer|5GNode)C[12]E"
        r"|_ZNK2ge(8Operator13GetOutputDesc|6Tensor13GetTensorDesc|10TensorDesc(8GetShape|14GetOriginShape))",
        "movq $0,(%rdi)\nmovq $0,8(%rdi)\nmovq %rdi,%rax\nret",
    ),
    # Functions that return a vector: an empty one.
    (
        r"_ZNK2ge(5Shape7GetDims|5Graph13GetDirectNode|5GNode(17GetInControlNodes|18GetOutControlNodes|27|28))",
        "movq $0,(%rdi)\nmovq $0,8(%rdi)\nmovq $0,16(%rdi)\nmovq %rdi,%rax\nret",
    ),
)
"""(names by pattern, what a function does), as assembler for x86-64."""
_CARD = """[version]
SoC_version={name}
Short_SoC_version=Ascend910B
AIC_version=AIC-C-220
CCEC_AIC_version=dav-c220-cube
CCEC_AIV_version=dav-c220-vec
[SoCInfo]
ai_core_cnt=24
cube_core_cnt=24
vector_core_cnt=48
ai_cpu_cnt=6
memory_size=68719476736
l2_size=201326592
l2PageNum=64
[AICoreSpec]
cube_freq=1800
l0_a_size=65536
l0_b_size=65536
l0_c_size=131072
l1_size=524288
fb0_size=2048
fb1_size=1024
fb2_size=2048
fb3_size=2048
bt_size=1024
ub_size=196608
ubblock_size=32
ubbank_size=4096
ubbank_num=64
[VectorCoreSpec]
ub_size=196608
ubblock_size=32
"""
"""What kernels inside the wheel compute their tiling from: the numbers of one card."""


def missing() -> str | None:
    """Why the dry run cannot be had here, in one line; None where it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"only the x86-64 wheels for Linux hold the Ascend backend; this is {platform.system()} {platform.machine()}"
    for tool in ("g++", "nm", "strings", "readelf"):
        if shutil.which(tool) is None:
            return f"there is no {tool} to make stand-ins for CANN's libraries with"
    plugin = _mindspore() / "lib/plugin/libmindspore_ascend.so.2"
    return None if plugin.exists() else f"this MindSpore has no Ascend backend ({plugin.name})"


def build(folder: Path) -> None:
    """Fills an empty folder with the stand-ins for the installed MindSpore, in a few seconds."""
    if "cann" in str(folder).lower():
        raise ValueError(f"{folder}: MindSpore takes a library below a path with 'cann' in it for the real one")
    home = folder / "ascend-toolkit" / "latest"
    libraries = home / "lib64"
    for part in ("lib64", "opp", "opp_kernel", "compiler", "runtime/data/platform_config"):
        (home / part).mkdir(parents=True)
    (home / "compiler/version.info").write_text("Version=8.3.RC1\n")
    for name in ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4"):
        (home / f"runtime/data/platform_config/{name}.ini").write_text(_CARD.format(name=name))
    hccl = folder / "python/hccl"  # mindspore.communication looks for CANN's wheel of this name
    hccl.mkdir(parents=True)
    (hccl / "__init__.py").touch()
    (hccl / "sys_version.py").write_text('__sys_version__ = "8.3"\n')
    _compile(folder, libraries / "libstub.so")
    for name in _library_names():
        (libraries / name).symlink_to("libstub.so")


def environment(folder: Path) -> dict[str, str]:
    """The variables under which MindSpore loads the stand-ins in `folder` and runs dry."""
    home, lib = folder / "ascend-toolkit/latest", _mindspore() / "lib"
    folders = [home / "lib64", lib, *dict.fromkeys(path.parent for path in _plugins() if path.parent != lib / "plugin")]
    paths = [folder / "python", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "ASCEND_HOME_PATH": str(home),
        "ASCEND_OPP_PATH": str(home / "opp"),
        "LD_LIBRARY_PATH": ":".join(map(str, folders)),
        "PYTHONPATH": ":".join(map(str, paths)),
        "MS_SIMULATION_LEVEL": "1",
        "RANK_SIZE": "1",
        "RANK_ID": "0",
    }


def _mindspore() -> Path:
    spec = importlib.util.find_spec("mindspore")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _plugins() -> list[Path]:
    """The plugin, and every library of it that another one links to."""
    plugin = _mindspore() / "lib/plugin"
    files = [path for path in sorted((plugin / "ascend").rglob("*.so*")) if path.is_file() and _is_x86_64(path)]
    named = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so"]
    return named + [path for path in files if not any(part in str(path) for part in _NOT_LOADED)]


def _is_x86_64(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(20)
    return header[:4] == b"\x7fELF" and header[18:] == b"\x3e\0"


@functools.cache
def _strings() -> str:
    """Every text, one a line, in the libraries that look up functions and open libraries by name."""
    plugin = _mindspore() / "lib/plugin"
    own = [path for path in _plugins() if path.parent in (plugin, plugin / "ascend")]
    return _output("strings", "-n", "5", *(path for path in own if not path.name.startswith(_NAMES_NOTHING)))


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(folder: Path, library: Path) -> None:
    old_strings = ("g++", "-fPIC", "-O1", "-w", "-D_GLIBCXX_USE_CXX11_ABI=0")
    compiled, assembler = folder / "stub.o", folder / "stub.s"
    subprocess.run([*old_strings, "-c", SOURCE, "-o", compiled], check=True)
    assembler.write_text(_assembler(sorted(_functions() - _symbols([compiled], "--defined-only", dynamic=False))))
    subprocess.run([*old_strings, "-shared", "-o", library, assembler, compiled], check=True)


def _assembler(names: list[str]) -> str:
    """One function per behaviour, under all the names that have it."""
    bodies = {"xor %eax,%eax\nret": []}
    for name in names:
        body = next((code for pattern, code in _BEHAVIOURS if re.match(pattern, name)), "xor %eax,%eax\nret")
        bodies.setdefault(body, []).append(f".globl {name}\n.type {name},@function\n{name}:\n")
    code = "\n".join("".join(labels) + body for body, labels in bodies.items())
    object_of_zeros = ".bss\n.globl stub_object\n.align 64\nstub_object: .zero 65536\n"
    return f'.text\n{code}\n{object_of_zeros}.section .note.GNU-stack,"",@progbits\n'


def _functions() -> set[str]:
    """What the plugin links to or looks up, and nobody here has."""
    mine = _plugins()
    folder = _mindspore()
    there = _symbols([*mine, *folder.glob("*.so"), *(folder / "lib").glob("*.so*")], "--defined-only")
    linked = {name for name in _symbols(mine, "--undefined-only") if not re.match(r"_?Py|_ITM|__g|_ZT[HIV]", name)}
    looked_up = set(_LOOKED_UP.findall(_strings()))
    kernels = {name.removesuffix("GetWorkspaceSize") for name in looked_up if name.startswith("aclnn")}
    looked_up |= kernels | {f"{name}GetWorkspaceSize" for name in kernels} | {*_ACLNN_RUNTIME}
    looked_up |= {f"acl{verb}{kind}" for verb in ("Create", "Destroy") for kind in _ACLNN_OBJECTS}
    system = [ctypes.CDLL(name) for name in (None, "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1")]
    return {name for name in (linked | looked_up) - there if not any(hasattr(library, name) for library in system)}


def _symbols(files: list[Path], which: str, dynamic: bool = True) -> set[str]:
    """Names in the files' symbol tables, without those that carry a version: only the system's libraries have versions."""
    lines = _output("nm", *(["-D"] if dynamic else []), which, *files).splitlines()
    names = {line.split()[-1] for line in lines if " " in line}
    return {name for name in names if "@" not in name} if which == "--undefined-only" else {n.split("@")[0] for n in names}


def _library_names() -> set[str]:
    """What the plugin opens by name or links to, and neither the wheel nor the system has."""
    linked = re.findall(r"\(NEEDED\).*\[(lib.*)\]", _output("readelf", "-d", *_plugins()))
    wanted = {*_OPENED.findall(_strings()), *linked}
    wheel = {path.name for path in (_mindspore() / "lib").rglob("*.so*")} - {"libatb.so"}  # which asks the device at once
    elsewhere = re.compile(r"lib(mindspore|dummy|ttp|gmem)")
    return {name for name in wanted - wheel if not elsewhere.match(name) and not _of_system(name)}


def _of_system(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True

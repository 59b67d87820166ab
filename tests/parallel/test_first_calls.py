"""Whatever a user's script calls first, several processes give the answer of one."""

import numpy as np
import pytest

from tests.parallel.answers import answers, compare
from tests.parallel.launching import STRATEGIES, launch, msrun

WANTED = {"names": ["text"], "spoken": ["text"]}
SCRIPT = """\
import os
import numpy as np
{first}
from ms_omni import Qwen3OmniMoeForConditionalGeneration
{second}
model = Qwen3OmniMoeForConditionalGeneration.from_pretrained({folder!r}, progress=False{options})
from tests.parallel.answers import answers
np.savez({out!r} + "/" + os.environ["MS_ROLE"] + os.environ["RANK_ID"], **answers(model, {folder!r}, **{wanted!r}))
"""
MINDSPORE = "import mindspore as ms"
FIRST = {
    "from_pretrained": ("", "", ""),
    **{strategy: ("", "", f", parallel={strategy!r}") for strategy in STRATEGIES},
    "start": ("", "from ms_omni.parallel import start; start()", ""),
    "init": (MINDSPORE, "ms.communication.init()", ""),
    "init, then ms_omni": (f"{MINDSPORE}; ms.communication.init()", "", ""),
    "init of its own name": ("from mindspore.communication import init", "init('hccl')", ""),
    "mint": ("import mindspore.mint.distributed as dist", "dist.init_process_group(backend='hccl')", ""),
    "mint of its own name": ("from mindspore.mint.distributed import init_process_group", "init_process_group()", ""),
    "ms_omni's": ("", "import ms_omni.parallel as dist; dist.init_process_group('hccl')", ""),
    "set_context": (f"{MINDSPORE}; ms.set_context(mode=ms.PYNATIVE_MODE); ms.set_device('CPU')", "", ""),
    "data_parallel": (MINDSPORE, "ms.set_auto_parallel_context(parallel_mode='data_parallel')", ""),
    "init and data_parallel": (
        f"{MINDSPORE}; ms.communication.init(); ms.set_auto_parallel_context(parallel_mode='data_parallel')",
        "",
        "",
    ),
    "parallel=None": ("", "", ", parallel=None"),
    "a processor": ("", "from ms_omni import Qwen3OmniMoeProcessor; Qwen3OmniMoeProcessor.from_pretrained({folder!r})", ""),
}
QUICK = [(msrun, "from_pretrained")]
JOBS = [
    pytest.param(run, first, marks=() if (run, first) in QUICK else pytest.mark.slow, id=f"{run.__name__}-{first}")
    for first in FIRST
    for run in (msrun, launch)
    if run is msrun or first in ("from_pretrained", *STRATEGIES, "mint", "parallel=None")
]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, tiny_model):
    return answers(tiny_model, str(tiny_checkpoint), **WANTED)


@pytest.mark.parametrize("run, first", JOBS)
def test_the_answer_of_one_process(run, first, tiny_checkpoint, expected, tmp_path):
    folder = str(tiny_checkpoint)
    before, after, options = FIRST[first]
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(
            first=before,
            second=after.format(folder=folder),
            folder=folder,
            options=options,
            out=str(tmp_path),
            wanted=WANTED,
        )
    )
    job = run(2, tmp_path / "job", script)
    assert job.code == 0, job.explain()
    for rank in range(2):
        with np.load(tmp_path / f"MS_WORKER{rank}.npz") as found:
            compare(dict(found), expected)
    said = "CPU has no 'hccl'; the processes talk through 'mccl'"
    assert (said in job.logs[0] + job.output) == ("mint" in first or "own name" in first)


PROCESSOR = "Qwen3OmniMoeProcessor.from_pretrained(FOLDER)"


@pytest.mark.parametrize(
    "run, line, code, said",
    [
        pytest.param(msrun, PROCESSOR, 0, "", marks=pytest.mark.slow),
        pytest.param(launch, PROCESSOR, 0, "", marks=pytest.mark.slow),
        pytest.param(msrun, "sys.exit(0)", 0, "", marks=pytest.mark.slow),
        pytest.param(msrun, "raise RuntimeError('enough')", 1, "RuntimeError: enough", marks=pytest.mark.slow),
        pytest.param(launch, "raise RuntimeError('enough')", 1, "RuntimeError: enough", marks=pytest.mark.slow),
        pytest.param(msrun, "RANK == 1 and 1 / 0; load()", 1, "ZeroDivisionError", marks=pytest.mark.slow),
        pytest.param(launch, "RANK == 1 and 1 / 0; load()", 1, "ZeroDivisionError", marks=pytest.mark.slow),
        pytest.param(msrun, "load(); RANK == 1 and 1 / 0; load()", 1, "ZeroDivisionError", marks=pytest.mark.slow),
    ],
)
def test_scripts_that_need_no_others_or_end_early(run, line, code, said, tiny_checkpoint, tmp_path):
    """Long before MindSpore's scheduler would give up waiting for them."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys\nfrom ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor\n"
        f"FOLDER, RANK = {str(tiny_checkpoint)!r}, int(os.environ['RANK_ID'])\n"
        f"load = lambda: Qwen3OmniMoeForConditionalGeneration.from_pretrained(FOLDER)\n{line}\n"
    )
    job = run(2, tmp_path / "job", script, limit_s=150)
    assert job.code == code and said in job.explain(), job.explain()

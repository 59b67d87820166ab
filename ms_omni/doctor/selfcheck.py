"""Does the model compute what it should here? Operators against formulas in numpy, every stage of a tiny checkpoint against values
recorded with the reference, and the miniature's answers to its samples.

`data/selfcheck.npz` holds for each stage some values, and by how much bfloat16 alone changes them in the reference
(`tests/reference/record_doctor.py`). In a 16-bit precision a few times that is allowed. Inputs of the stages are seeded, for the geometry
"tiny"; the recorder draws the same ones, in an environment without MindSpore.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError, OmniError
from ..outputs import SPEECH_RATE_HZ
from .runner import Finding, Findings, error, note, ok, one_line, warning

STORAGES = ("float32", "bfloat16", "int8", "int4")
STORED = Path(__file__).with_name("data") / "selfcheck.npz"
GEOMETRY, SEED = "tiny", 20
STORED_VALUES = 256  # of each stage
FLOAT32_LIMIT = 1e-3
BFLOAT16_FACTOR = 4
VERSIONS = (
    "compare the versions above with the table; run it with MS_OMNI_OPS=reference to see whether an operator is at fault"
)
DEMO = "run ms-omni demo, and again with MS_OMNI_OPS=reference: it shows each answer beside the right one"


# -- operators ------------------------------------------------------------------------------------------------------------


def operators(_: Any) -> Findings:
    """Findings on the choice of operators and on their numbers in the precision that this device computes in."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            from ..modeling import ops
        except ValueError as reason:  # MS_OMNI_OPS or MS_OMNI_BOOST
            yield error(one_line(reason), f"unset {str(reason).partition('=')[0]}, or set it to what is listed there")
            return
        from ..runtime import setup

        runtime = setup()
        try:
            ops.settle(runtime.dtype)
        except DeviceError as reason:
            yield error(one_line(reason, 1000), _operator_advice(runtime.device))
            return
    yield from _choice(ops, runtime, [one_line(item.message, 1000) for item in caught])
    yield from _numbers(ops, runtime)


def _choice(ops, runtime, messages):
    from ..modeling.ops.dispatch import boost_wanted

    yield ok(f"{runtime.device}, {str(runtime.dtype).lower()}: {runtime.reason}")
    if ops.vectors():
        yield note(f"kernels for {ops.vectors()}; matrices may lie in {', '.join(STORAGES)}, and are widened in registers")
    groups = {}
    for name, implementation, reason in ops.describe():
        groups.setdefault((implementation, reason), []).append(name)
    for (implementation, reason), names in groups.items():
        yield note(f"{implementation} ({reason}): {', '.join(names)}")
    slow = [line for line in messages if "slower reference operators" in line]
    for line in slow:
        yield warning(line, "install g++ (apt install g++, yum install gcc-c++), or name a compiler in CXX")
    for line in messages:
        if line not in slow and "operator" in line:
            yield warning(line, "it runs in another form, more slowly; report the line if versions match the table")
    if os.environ.get("MS_OMNI_OPS"):
        yield note(f"MS_OMNI_OPS={os.environ['MS_OMNI_OPS']} forces the choice")
    if boost_wanted():
        known = ops.implementation().steps(runtime.dtype)
        if not known:
            yield note("MS_OMNI_BOOST=1 has no effect: these operators are not those of Ascend")
        elif "boosted_step" in known:
            yield note(
                "MS_OMNI_BOOST=1: decode layers have kernels that come with MindSpore, which were compared on this device"
            )


def _numbers(ops, runtime):
    """Every operator as it was chosen against its formula in numpy, on small inputs."""
    from ..modeling.ops.ascend_check import examine, is_right

    found = examine(ops.implementation(), runtime.dtype, False, {})
    rows = {row: result for row, result in found if row.form == 0 and result is not None}
    wrong = {row: result for row, result in rows.items() if not is_right(result, runtime.dtype)}
    for row, result in wrong.items():
        how = (
            f"fails: {one_line(result, 150)}" if isinstance(result, str) else f"is off by {result:.2g} of its largest value"
        )
        yield error(f"an operator computes wrongly: {row.operator} ({row.kind}) {how}", _operator_advice(runtime.device))
    if not wrong:
        names = {row.operator for row in rows}
        yield ok(f"{len(names)} operators compute what numpy does, in {str(runtime.dtype).lower()}")


def _operator_advice(device):
    if device == "CPU":
        return "try MS_OMNI_OPS=reference; if that computes rightly, remove ~/.cache/ms_omni, else reinstall mindspore"
    return "try MS_OMNI_OPS=reference; if that is wrong too, compare the versions of MindSpore, CANN and driver"


# -- stages ---------------------------------------------------------------------------------------------------------------


def inputs(width: int) -> dict[str, Any]:
    """{stage: what it takes}; width: of the talker's rows.

    image, video: pixels `[N, 1536]` and grid `[1, 3]`; audio: mel frames `[1, 128, 180]`, a whole chunk and a part; text: ids `[1, 12]`,
    all of them words; talker: rows `[1, 9, width]` and positions float32 `[3, 1, 9]` whose axes differ; predictor: the talker's hidden
    state `[1, 1, width]` and a first code `[1, 1]`; code2wav: codes `[1, 16, 20]`.
    """

    def normal(random, *shape):
        return random.standard_normal(shape).astype(np.float32)

    draw = np.random.RandomState
    grids = {"image": np.array([[1, 4, 6]], np.int64), "video": np.array([[2, 4, 4]], np.int64)}
    positions = np.tile(np.arange(9, dtype=np.float32), (3, 1, 1))
    positions[0, 0, 3:] += 2.5
    predictor = draw(6)
    return {
        **{name: (normal(draw(seed), grid.prod(), 1536), grid) for seed, (name, grid) in enumerate(grids.items(), 1)},
        "audio": normal(draw(3), 1, 128, 180),
        "text": draw(4).randint(0, 250, (1, 12)),
        "talker": (normal(draw(5), 1, 9, width), positions),
        "predictor": (normal(predictor, 1, 1, width), predictor.randint(0, 200, (1, 1))),
        "code2wav": draw(7).randint(0, 256, (1, 16, 20)),
    }


def some(values: Any) -> np.ndarray:
    """At most `STORED_VALUES` values spread evenly over an array."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(STORED_VALUES, flat.size)).round().astype(int)]


def stages(_: Any) -> Findings:
    """Findings on each stage and on a whole spoken answer."""
    from ..model import Qwen3OmniMoeForConditionalGeneration
    from ..tiny import write_tiny_checkpoint

    with tempfile.TemporaryDirectory(prefix="ms_omni-doctor-") as folder:
        write_tiny_checkpoint(Path(folder) / "tiny", geometry=GEOMETRY, seed=SEED, dtype="float32")
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(Path(folder) / "tiny", progress=False)
        dtype, stored, good = str(model.dtype).lower(), np.load(STORED), []
        for name, values in run_stages(model):
            off, limit = distance(name, some(values), stored), limit_of(name, dtype, stored)
            if off <= limit:
                good.append(f"{name} {off:.0e}")
            else:
                yield error(f"{name}: off by {off:.2g} from the reference, {limit:.2g} is allowed in {dtype}", VERSIONS)
        if good:
            yield ok(f"as the reference computes, in {dtype} (relative difference): {', '.join(good)}")
        yield _spoken(model)


def run_stages(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stage, numbers float32) for every part of the model, in the order in which data passes through it."""
    from mindspore import Tensor

    from ..modeling.packing import host_array
    from ..modeling.steps import FrameGraph

    def floats(x):
        return host_array(x.float() if hasattr(x, "float") else x).astype(np.float32)

    thinker, talker = model.thinker, model.talker
    given = inputs(talker.config.text_config.hidden_size)
    yield "image", floats(thinker.get_image_features(*given["image"])[0])
    yield "video", floats(thinker.get_video_features(*given["video"])[0])
    yield "audio", floats(thinker.get_audio_features(given["audio"]))
    yield "text", floats(thinker(input_ids=given["text"]).logits)
    rows, positions = given["talker"]
    cache = talker.model.new_cache(1, rows.shape[1])
    logits, _ = talker.read(Tensor(rows).astype(model.dtype), positions, cache, np.ones(rows.shape[:2], bool))
    yield "talker", floats(logits)
    hidden, first = given["predictor"]  # whose logits of the second code of a frame are compared
    step = FrameGraph(talker, 1, None)
    embed = floats(talker.get_input_embeddings()(Tensor(first.astype(np.int32))))
    frame = Tensor(np.concatenate([hidden, embed], axis=1)).astype(model.dtype)
    yield "predictor", floats(talker.code_predictor.read(frame, step.metadata[0], (step.keys, step.values), 0))
    yield "code2wav", floats(model.code2wav.decode(given["code2wav"]))


def distance(name: str, values: np.ndarray, stored: Mapping[str, np.ndarray]) -> float:
    """Root mean square of the difference to what is stored, relative to that; infinite for values that are no numbers."""
    expected = stored[name].astype(np.float64)
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.sqrt(np.mean((values - expected) ** 2) / np.mean(expected**2)))


def limit_of(name: str, dtype: str, stored: Mapping[str, np.ndarray]) -> float:
    """How far a stage may be off."""
    return FLOAT32_LIMIT if dtype == "float32" else BFLOAT16_FACTOR * float(stored[f"{name}.bfloat16"])


def _spoken(model: Any) -> Finding:
    """A finding on a spoken answer to a text, of greedy ids."""
    config, end = model.config, [model.config.im_end_token_id, 10]
    turn = [config.im_start_token_id, config.user_token_id, 10, *inputs(1)["text"][0], *end]
    ids = np.array([[*turn, config.im_start_token_id, config.assistant_token_id, 10]])
    frames = {"talker_do_sample": False, "talker_max_new_tokens": 6, "talker_min_new_tokens": 6}
    try:
        answer, wave = model.generate(input_ids=ids, max_new_tokens=6, eos_token_id=[], **frames)
    except Exception as reason:
        return error(f"a spoken answer fails: {type(reason).__name__}: {one_line(reason)}", VERSIONS)
    tokens, wave = np.asarray(answer).shape[1] - ids.shape[1], np.asarray(wave).reshape(-1)
    if not tokens or not wave.size or not np.isfinite(wave).all():
        return error("a spoken answer is empty or holds no numbers", VERSIONS)
    return ok(f"a spoken answer: {tokens} tokens, {wave.size / SPEECH_RATE_HZ:.2f} s of sound")


# -- answers that mean something ------------------------------------------------------------------------------------------


def miniature(_: Any) -> Findings:
    """One finding on all samples, one on how it transcribes its own speech; a note where there is no miniature."""
    from ..demo import samples as demo
    from ..input.processor import Qwen3OmniMoeProcessor
    from ..model import Qwen3OmniMoeForConditionalGeneration

    try:
        folder = demo.find_miniature()
        samples = demo.load_samples(demo.find_samples(folder))
    except OmniError:
        yield note("not tried: the miniature checkpoint is not here; install ms_omni again")
        return
    processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False, compile_steps=False)
    speaker = next(iter(model.config.talker_config.speaker_id))
    answers = [demo.ask(model, processor, sample, speaker, seed=0) for sample in samples]
    pairs = [(sample, answer) for sample, answer in zip(samples, answers) if answer.text != sample.answer]
    wrong = [f"{sample.shown}: {one_line(answer.text)!r}" for sample, answer in pairs]
    if wrong:
        yield error(f"wrong answers to {len(wrong)} of {len(samples)} samples: {'; '.join(wrong)}", DEMO)
    else:
        yield ok(f"right answers to all {len(samples)} samples: sound, pictures, video with and without its sound, text")
    differ = [
        f"{answer.text} as {one_line(answer.transcript)}"
        for answer in answers
        if answer.transcript not in (None, answer.text)
    ]
    if differ:
        yield note(f"in its own speech it heard {', '.join(differ)}; sampled speech is not always clear")
    else:
        yield ok("it understands its own speech")

"""Asks the miniature what it has not seen, and counts the right answers, task by task; then has it transcribe its own speech.

    python launch/evaluate.py --model examples/miniature
    python launch/evaluate.py --seed 7 --fresh-voices                    # needs espeak-ng
    python launch/evaluate.py --tasks same --reference-python PYTHON     # the same answers as PyTorch transformers?
    python launch/evaluate.py --against DIR                              # what another checkpoint answers to the same questions
    python launch/evaluate.py --model DIR --quantize int4 --questions FILE
    msrun --worker_num=2 --local_worker_num=2 --join=True launch/evaluate.py

Under msrun the processes share the model; rank 0 prints and writes.

A comparison (--against, --quantize) says how many answers change, how far the distributions of the next token are from each other
along the first one's answers (KL divergence in nats, share of positions at which both choose the same token), and how well each
transcribes its own speech. A checkpoint that does not know the miniature's world is asked --questions, conversations of yours, or
continues random prompts. --questions: JSON, each value {"messages": [...]}, with "answer" where there is a right one.
"""

import argparse
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.miniature import held_out
from examples.miniature.training.voices import load_clips, make_clips
from examples.miniature.training.world import DIRECTIONS, UNKNOWN, digit_string
from launch.comparison import Conversations, beginning, compare, interval, random_prompts, report_changes, words, write
from ms_omni import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from ms_omni.errors import InputError, OmniError
from ms_omni.input.load import checked
from ms_omni.input.messages import read_batch, read_values, spoken_turn
from ms_omni.outputs import SPEECH_RATE_HZ, AudioChunk, StreamEnd
from ms_omni.parallel import start

EXTRAS = ("round_trip", "same")  # its own speech, transcribed; answers beside the reference's
Questions = Sequence[held_out.Question]
Rows = list[dict[str, Any]]
PARTS = {  # questions of a task that are counted once more: key, name, by the right answer
    "motion": ("direction", "the direction", lambda answer: answer in DIRECTIONS),
    "motion_and_digits": ("both_parts", "both parts", lambda answer: " and " in answer),
}
VOCABULARY = "vocab.json"  # a checkpoint with the miniature's own file of this name knows its world
ANSWER_TOKENS = 32  # of an answer at most
TRANSCRIBE_NUMBER = "What number do you hear?"
TRANSCRIBE = "Transcribe the audio into text."  # of a question of the user's, as Qwen's evaluations ask for it
WORDS = 30  # of a question that are spoken
INPUT_HZ = 16_000
QUIET = 0.02  # of the loudest sample: below it is silence or noise
MAX_TAIL_S = 1.5
MAX_FRAMES = 200  # of one utterance: 16 s
WORLD = ("tasks", "share", "batch", "round_trips", "fresh_voices")
MODES = {  # of an evaluation: the options that change it, beside the seed
    "the evaluation of one checkpoint": (*WORLD, "reference_python"),
    "a comparison in the miniature's world": (*WORLD, "answer_tokens"),
    "a comparison by --questions": ("questions", "round_trips", "answer_tokens"),
    "a comparison by random prompts": ("prompts", "prompt_tokens", "answer_tokens"),
}
ONE, IN_WORLD, QUESTIONS, PROMPTS = MODES
DEFAULTS = {"share": 1.0, "batch": 10, "round_trips": 40, "prompts": 16, "prompt_tokens": 64, "answer_tokens": 32}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "examples/miniature"), help="checkpoint folder")
    parser.add_argument("--tasks", nargs="+", choices=[*held_out.TASKS, *EXTRAS], help="default: all of them")
    parser.add_argument("--share", type=float, help="of the usual number of questions (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default: 0)")
    parser.add_argument("--batch", type=positive, help="conversations answered together (default: 10)")
    parser.add_argument("--round-trips", type=int, help="spoken texts for each speaker (default: 40)")
    parser.add_argument("--fresh-voices", action="store_true", help="synthesise new clips with espeak-ng")
    parser.add_argument(
        "--reference-python",
        type=Path,
        metavar="PATH",
        help="interpreter with tests/reference/requirements.txt: asks PyTorch transformers the 200 fixed "
        "questions, instead of reading what was recorded for these weights",
    )
    parser.add_argument("--json", type=Path, help="also write the counts and every wrong answer here")
    other = parser.add_argument_group("a comparison with a second checkpoint")
    other.add_argument("--against", metavar="DIR", help="the second one, such as --model quantised by ms-omni convert")
    other.add_argument("--quantize", choices=("int8", "int4"), help="the second one is --model, quantised while it loads")
    other.add_argument("--group", type=int, choices=(128, 64, 32), help="inputs that share a scale (--quantize)")
    other.add_argument("--questions", type=Path, metavar="FILE", help="conversations to ask, JSON (see above)")
    other.add_argument("--prompts", type=positive, help="random prompts where nothing can be asked (default: 16)")
    other.add_argument("--prompt-tokens", type=positive, help="of each of them (default: 64)")
    other.add_argument("--answer-tokens", type=positive, help="of an answer at most (default: 32)")
    arguments = parser.parse_args()
    if arguments.group and not arguments.quantize:
        parser.error("--group is for --quantize")
    if arguments.against and arguments.quantize:
        parser.error("--quantize makes the second checkpoint out of --model, and --against names another; leave one out")
    arguments.mode = mode_of(arguments)
    for name in sorted({name for names in MODES.values() for name in names}):
        if getattr(arguments, name) not in (None, False) and name not in MODES[arguments.mode]:
            parser.error(f"--{name.replace('_', '-')} changes nothing in {arguments.mode}; leave it out")
    tasks = arguments.tasks or ["round_trip"]
    if arguments.round_trips is not None and "round_trip" not in tasks:
        parser.error("--round-trips is for --tasks round_trip; leave it out")
    if arguments.mode == IN_WORLD and "same" in tasks:
        parser.error("--tasks same belongs to the evaluation of one checkpoint; leave it out of a comparison")
    vars(arguments).update({name: value for name, value in DEFAULTS.items() if getattr(arguments, name) is None})
    return arguments


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return number


def mode_of(arguments: argparse.Namespace) -> str:
    """A key of MODES."""
    if not (arguments.against or arguments.quantize):
        return ONE
    if arguments.questions:
        return QUESTIONS
    own = Path(arguments.model) / VOCABULARY
    knows = own.is_file() and own.read_bytes() == (ROOT / "examples/miniature" / VOCABULARY).read_bytes()
    return IN_WORLD if knows else PROMPTS


def of_rank_0(group: Any, create: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What rank 0 creates of these arguments, on every rank: encoded videos may differ in a bit between processes."""
    if group is None:
        return create(*arguments, **options)
    data = pickle.dumps(dict(create(*arguments, **options))) if group.mesh.rank == 0 else b""
    return pickle.loads(group.comm.gather_bytes(data)[0])


def batches(processor: Any, questions: Questions, size: int) -> Iterator[tuple[list[int], Conversations]]:
    """The questions, and which ones each batch holds: only what has its sound woven in the same way goes together."""
    for with_sound in (False, True):
        chosen = [index for index, item in enumerate(questions) if item.use_audio_in_video is with_sound]
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]

            def inputs(model, part=part, with_sound=with_sound):
                messages = [questions[index].messages for index in part]
                options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
                return of_rank_0(
                    model.process_group, processor.apply_chat_template, messages, use_audio_in_video=with_sound, **options
                )

            right = [questions[index].answer for index in part]
            yield part, Conversations(questions[part[0]].task, inputs, right, {"use_audio_in_video": with_sound})


def tail_s(sound: np.ndarray) -> float:
    """Seconds of silence or faint noise at the end."""
    loud = np.flatnonzero(np.abs(sound) > QUIET * max(1e-6, np.abs(sound).max(initial=0)))
    return (len(sound) - 1 - loud[-1]) / SPEECH_RATE_HZ if len(loud) else len(sound) / SPEECH_RATE_HZ


class Checkpoint:
    """A model that is asked."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    def answers(self, questions: Questions, batch_size: int, tokens: int = ANSWER_TOKENS) -> list[str]:
        """What it answers to each question, greedily."""
        texts = [""] * len(questions)
        for part, batch in batches(self.processor, questions, batch_size):
            inputs = batch.inputs(self.model)
            for index, answer in zip(part, write(self.model, self.processor, batch, inputs, tokens)):
                texts[index] = answer.text
        return texts

    def speak(self, text: str, speaker: str, seed: int) -> tuple[np.ndarray, bool]:
        """The spoken text, float32 at 24 kHz, and whether it ended by itself."""
        turn, chunks, frames = spoken_turn(self.processor, text), [np.zeros(0, np.float32)], 0
        for event in self.model.say(**turn, speaker=speaker, seed=seed, talker_max_new_tokens=MAX_FRAMES):
            if isinstance(event, AudioChunk):
                chunks.append(event.pcm[0, : event.samples[0]])
            elif isinstance(event, StreamEnd):
                frames = int(event.frames[0])
        return np.concatenate(chunks), frames < MAX_FRAMES - 1  # the last code has no frame

    def transcribe(self, texts: Sequence[str], speaker: str, question: str, seed: int, *limits: int) -> Rows:
        """Results of texts that it speaks, and transcribes again. limits: batch size, and tokens of an answer."""
        spoken = [self.speak(text, speaker, seed + index) for index, text in enumerate(texts)]
        questions = []
        for text, (sound, _) in zip(texts, spoken):
            audio = soxr.resample(np.pad(sound, (0, max(0, 4800 - len(sound)))), SPEECH_RATE_HZ, INPUT_HZ)
            content = [{"type": "audio", "audio": audio}, {"type": "text", "text": question}]
            questions.append(held_out.Question("round_trip", [{"role": "user", "content": content}], text, False))
        return [
            {"asked": text, "heard": answer, "stopped": stopped, "tail_s": round(float(tail_s(sound)), 2)}
            for text, answer, (sound, stopped) in zip(texts, self.answers(questions, *limits), spoken)
        ]

    def round_trips(self, arguments: argparse.Namespace) -> dict[str, Rows]:
        """Per speaker the results of digit strings that are spoken and transcribed again."""
        results = {}
        for speaker in self.model.config.talker_config.speaker_id:
            rng = random.Random(f"{arguments.seed}/{speaker}")
            texts = [digit_string(rng) for _ in range(arguments.round_trips)]
            results[speaker] = self.transcribe(texts, speaker, TRANSCRIBE_NUMBER, arguments.seed, arguments.batch)
        return results


def reference_answers(model_folder: str, python: Path | None, folder: Path) -> dict[str, list[str]] | None:
    """The reference's answers to the fixed questions: those recorded for these weights, else (with `python`) fresh ones.

    None when there are neither.
    """
    file = held_out.ANSWERS
    if python:
        file = folder / "reference.json"
        command = [python, "-m", "tests.reference.record_miniature", "--model", model_folder, "--out", file]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if not file.is_file():
        return None
    recorded = json.loads(file.read_text(encoding="utf-8"))
    return recorded["answers"] if recorded["weights"] == held_out.checksum(model_folder) else None


def read_questions(path: Path) -> Questions:
    """Conversations of a file. Raises `InputError` that names the first value which is none."""
    found = []
    for where, row in read_values(path):
        known = isinstance(row, dict) and isinstance(row.get("messages"), list) and not set(row) - {"messages", "answer"}
        if not known or not isinstance(row.get("answer", ""), str):
            raise InputError(f'{where}: expected {{"messages": [...]}}, with "answer", a text, if you know it')
        right: Any = row.get("answer")
        found.append(held_out.Question("questions", checked(row["messages"], where), right, False))
    if not found:
        raise InputError(f"--questions {path} holds no conversation")
    return found


def last_words(messages: list[Any]) -> str:
    """What a conversation's last message says in writing, cut to what is spoken in some seconds; "" without words."""
    (read,), _ = read_batch([messages])
    text = " ".join(" ".join(read[-1].texts).split())
    return beginning(text, WORDS) if words(text) else ""


def task_questions(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Questions]]:
    """(task, its questions), of every task that is wanted."""
    speech = held_out.load_speech()
    if arguments.fresh_voices:
        clips = {"digits": 200, "sum": 60, "outside": 40}
        make_clips(folder / "clips.npz", clips, heard=False, seed=10_000 + arguments.seed)
        speech = load_clips(folder / "clips.npz")
    for task in arguments.tasks or held_out.TASKS:
        if task in held_out.TASKS:
            count = max(1, round(held_out.TASKS[task] * arguments.share))
            yield task, held_out.questions(task, count, arguments.seed, folder, speech)


def compare_checkpoints(arguments: argparse.Namespace, processor: Any, folder: Path) -> dict[str, Any]:
    """Puts the same to both checkpoints, prints the comparison and returns it."""
    questions: Questions = []
    if arguments.mode == QUESTIONS:
        questions = read_questions(arguments.questions)
        conversations = [item for _, item in batches(processor, questions, 1)]
    elif arguments.mode == IN_WORLD:
        tasks = [asked for _, asked in task_questions(arguments, folder)]
        conversations = [item for asked in tasks for _, item in batches(processor, asked, arguments.batch)]
    else:
        config = Qwen3OmniMoeConfig.from_pretrained(arguments.model)
        conversations = random_prompts(config, processor, arguments.prompts, arguments.prompt_tokens, arguments.seed)

    def speech(model):
        """Results of what it spoke and transcribed, in words why there are none, or None where nobody wants them."""
        if arguments.round_trips <= 0 or "round_trip" not in (arguments.tasks or ["round_trip"]):
            return None
        if not model.has_talker:
            return "it has no talker"
        checkpoint = Checkpoint(model, processor)
        if arguments.mode == IN_WORLD:
            return [row for rows in checkpoint.round_trips(arguments).values() for row in rows]
        texts = [text for text in (last_words(item.messages) for item in questions) if text][: arguments.round_trips]
        speaker = next(iter(model.config.talker_config.speaker_id))
        return (
            checkpoint.transcribe(texts, speaker, TRANSCRIBE, arguments.seed, 1, 4 * WORDS) or "there are no words to speak"
        )

    quantised = {"quantize": arguments.quantize, "quantize_group": arguments.group} if arguments.quantize else {}
    loads = (
        lambda: Qwen3OmniMoeForConditionalGeneration.from_pretrained(arguments.model),
        lambda: Qwen3OmniMoeForConditionalGeneration.from_pretrained(arguments.against or arguments.model, **quantised),
    )
    (folder / "logits").mkdir()
    rows, next_token, spoken = compare(loads, processor, conversations, folder / "logits", arguments.answer_tokens, speech)
    results = report_changes(rows, next_token, spoken, "words" if arguments.mode == QUESTIONS else "digits")
    return {"results": results, "changed": [row for row in rows if row["first"] != row["second"]]}


def report(name: str, right: int, count: int, note: str = "") -> dict[str, float]:
    low, high = interval(right, count)
    print(f"{name:24} {right:4d} of {count:4d}   {right / max(1, count):7.1%}   [{low:.1%}, {high:.1%}]{note}", flush=True)
    return {"right": right, "count": count, "low": low, "high": high}


class Evaluation:
    """Of one checkpoint: results by name, and the wrong answers."""

    def __init__(self, arguments: argparse.Namespace, processor: Any, folder: Path, alone: bool):
        self.arguments, self.folder, self.alone = arguments, folder, alone
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(arguments.model)
        self.checkpoint = Checkpoint(model, processor)
        self.results: dict[str, Any] = {}
        self.wrong: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Puts everything that is wanted to it. alone: without other processes."""
        wanted = self.arguments.tasks or EXTRAS
        print(f"{'task':24} {'right':>4}            share     95 % confidence")
        self._tasks()
        if "round_trip" in wanted and self.checkpoint.model.has_talker:
            self._round_trips()
        elif "round_trip" in wanted:
            print("round trip: left out, it has no talker")
        if "same" in wanted:
            self._same_as_reference()
        return {"results": self.results, "wrong": self.wrong}

    def _tasks(self):
        """The questions of each task; what it wrongly does not know is counted over all of them."""
        in_world = []
        for task, questions in task_questions(self.arguments, self.folder):
            pairs = list(zip(questions, self.checkpoint.answers(questions, self.arguments.batch)))
            wrong = [
                {"task": task, "messages": str(item.messages), "answer": item.answer, "said": text}
                for item, text in pairs
                if text != item.answer
            ]
            self.results[task] = report(task, len(pairs) - len(wrong), len(pairs))
            self.wrong += wrong
            if task in PARTS:
                key, name, belongs = PARTS[task]
                chosen = [text == item.answer for item, text in pairs if belongs(item.answer)]
                self.results[key] = report(f"  asked for {name}", sum(chosen), len(chosen))
            in_world += [text == UNKNOWN for item, text in pairs if item.answer != UNKNOWN]
        if in_world:
            self.results["does_not_know_in_world"] = report("wrongly does not know", sum(in_world), len(in_world))

    def _round_trips(self):
        """Digit strings spoken by each speaker and transcribed again; whether the speech stopped, and what follows its last sound."""
        for speaker, rows in self.checkpoint.round_trips(self.arguments).items():
            right = sum(row["asked"] == row["heard"] for row in rows)
            stopped = sum(row["stopped"] and row["tail_s"] <= MAX_TAIL_S for row in rows)
            longest = max((row["tail_s"] for row in rows), default=0)
            note = f"   {stopped} of {len(rows)} stopped by themselves, longest silence at the end {longest:.2f} s"
            figures = report(f"round trip, {speaker}", right, len(rows), note)
            self.results[f"round_trip_{speaker}"] = figures | {"stopped": stopped, "longest_tail_s": longest}
            bad = [row for row in rows if row["asked"] != row["heard"] or not row["stopped"]]
            self.wrong += [{"task": "round_trip", "speaker": speaker, **row} for row in bad]

    def _same_as_reference(self):
        """The fixed questions, whose answers by the reference are known."""
        python = self.arguments.reference_python if self.alone else None
        by_task = reference_answers(self.arguments.model, python, self.folder)
        if by_task is None:
            print(
                "same as the reference: left out, no answers to these weights are recorded "
                "(one process with --reference-python asks)"
            )
            return
        theirs = [text for texts in by_task.values() for text in texts]
        questions = held_out.fixed_questions(self.folder)
        ours = self.checkpoint.answers(questions, self.arguments.batch)
        rows = [{"task": item.task, "reference": other, "said": text} for item, other, text in zip(questions, theirs, ours)]
        different = [row for row in rows if row["reference"] != row["said"]]
        self.results["same_as_reference"] = report("same as the reference", len(rows) - len(different), len(rows))
        self.wrong += different


def main() -> None:
    arguments = parse_arguments()
    mesh, begin = start(), time.perf_counter()
    if not mesh.speaks:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as name:
        if arguments.mode == ONE:
            content = Evaluation(arguments, processor, Path(name), mesh.size == 1).run()
        else:
            content = compare_checkpoints(arguments, processor, Path(name))
    seconds = round(time.perf_counter() - begin)
    print(f"{seconds} s, {mesh.size} process(es)")
    if arguments.json and mesh.speaks:
        how = f"{arguments.model}, {arguments.quantize}{f' in groups of {arguments.group}' if arguments.group else ''}"
        second = arguments.against or (how if arguments.quantize else None)
        about = {"seed": arguments.seed, "processes": mesh.size, "fresh_voices": arguments.fresh_voices, "seconds": seconds}
        about["checkpoints"] = [arguments.model, *([second] if second else [])]
        arguments.json.write_text(json.dumps({"about": about, **content}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except OmniError as error:
        sys.exit(f"error: {error}")

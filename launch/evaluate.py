"""Asks the miniature what it has not seen, and counts the right answers, task by task; then listens to its own speech.

    python launch/evaluate.py --model examples/miniature
    python launch/evaluate.py --seed 7 --fresh-voices                    # needs espeak-ng
    python launch/evaluate.py --tasks same --reference-python PYTHON     # the same answers as PyTorch transformers?
    msrun --worker_num=2 --local_worker_num=2 --join=True launch/evaluate.py

Under msrun the processes share the model; rank 0 prints and writes.
"""

import argparse
import json
import math
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soxr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.miniature import held_out
from examples.miniature.training.voices import load_clips, make_clips
from examples.miniature.training.world import DIRECTIONS, UNKNOWN, digit_string
from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from ms_omni.input.spoken import spoken_turn
from ms_omni.outputs import AudioChunk, StreamEnd
from ms_omni.parallel import start

EXTRAS = ("round_trip", "same")  # its own speech in its own ears; answers beside the reference's
PARTS = {  # questions of a task that are counted once more: key, name, by the right answer
    "motion": ("direction", "the direction", lambda answer: answer in DIRECTIONS),
    "motion_and_digits": ("both_parts", "both parts", lambda answer: " and " in answer),
}
SPEECH_HZ, HEARING_HZ = 24_000, 16_000
QUIET = 0.02  # of the loudest sample: below it is silence or noise
MAX_TAIL_S = 1.5
MAX_FRAMES = 200  # of one utterance: 16 s


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "examples/miniature"), help="checkpoint folder")
    parser.add_argument("--tasks", nargs="+", choices=[*held_out.TASKS, *EXTRAS], help="default: all of them")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of questions (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default: 0)")
    parser.add_argument("--batch", type=int, default=10, help="conversations answered together (default: 10)")
    parser.add_argument("--round-trips", type=int, default=40, help="spoken texts for each speaker (default: 40)")
    parser.add_argument("--fresh-voices", action="store_true", help="synthesise new clips with espeak-ng")
    parser.add_argument(
        "--reference-python",
        type=Path,
        metavar="PATH",
        help="interpreter with tests/reference/requirements.txt: asks PyTorch transformers the 200 fixed "
        "questions, instead of reading what was recorded for these weights",
    )
    parser.add_argument("--json", type=Path, help="also write the counts and every wrong answer here")
    return parser.parse_args()


def interval(right, count):
    """Wilson's 95 % confidence interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def of_rank_0(team, make, *arguments, **options):
    """What rank 0 makes of these arguments, on every rank: encoded videos may differ in a bit between processes."""
    if team is None:
        return make(*arguments, **options)
    data = pickle.dumps(dict(make(*arguments, **options))) if team.mesh.rank == 0 else b""
    return pickle.loads(team.comm.gather_bytes(data)[0])


def answers(model, processor, questions, batch_size):
    """What the model says to each question, greedily."""
    texts = [None] * len(questions)
    for with_sound in (False, True):
        chosen = [index for index, item in enumerate(questions) if item.use_audio_in_video is with_sound]
        for first in range(0, len(chosen), batch_size):
            part = chosen[first : first + batch_size]
            asked = [questions[index].messages for index in part]
            inputs = of_rank_0(
                model.team,
                processor.apply_chat_template,
                asked,
                tokenize=True,
                return_dict=True,
                add_generation_prompt=True,
                use_audio_in_video=with_sound,
            )
            ids, _ = model.generate(**inputs, use_audio_in_video=with_sound, return_audio=False, max_new_tokens=32)
            new = ids[:, inputs["input_ids"].shape[1] :]
            for index, text in zip(part, processor.batch_decode(new, skip_special_tokens=True)):
                texts[index] = text.strip()
    return texts


def speak(model, processor, text, speaker, seed):
    """The spoken text, float32 at 24 kHz, and whether it ended by itself."""
    chunks, frames = [np.zeros(0, np.float32)], 0
    for event in model.say(**spoken_turn(processor, text), speaker=speaker, seed=seed, talker_max_new_tokens=MAX_FRAMES):
        if isinstance(event, AudioChunk):
            chunks.append(event.pcm[0, : event.samples[0]])
        elif isinstance(event, StreamEnd):
            frames = int(event.frames[0])
    return np.concatenate(chunks), frames < MAX_FRAMES - 1  # the last code has no frame


def tail_s(sound):
    """Seconds of silence or faint noise at the end."""
    loud = np.flatnonzero(np.abs(sound) > QUIET * max(1e-6, np.abs(sound).max(initial=0)))
    return (len(sound) - 1 - loud[-1]) / SPEECH_HZ if len(loud) else len(sound) / SPEECH_HZ


def round_trips(model, processor, count, seed, batch_size):
    """Per speaker the results of digit strings that are spoken and heard again."""
    found = {}
    for speaker in model.config.talker_config.speaker_id:
        rng = random.Random(f"{seed}/{speaker}")
        texts = [digit_string(rng) for _ in range(count)]
        spoken = [speak(model, processor, text, speaker, seed + index) for index, text in enumerate(texts)]
        heard = []
        for text, (sound, _) in zip(texts, spoken):
            audio = soxr.resample(np.pad(sound, (0, max(0, 4800 - len(sound)))), SPEECH_HZ, HEARING_HZ)
            content = [{"type": "audio", "audio": audio}, {"type": "text", "text": "What number do you hear?"}]
            heard.append(held_out.Question("round_trip", [{"role": "user", "content": content}], text, False))
        said = answers(model, processor, heard, batch_size)
        rows = [
            {"asked": text, "heard": answer, "stopped": stopped, "tail_s": round(float(tail_s(sound)), 2)}
            for text, answer, (sound, stopped) in zip(texts, said, spoken)
        ]
        found[speaker] = rows
    return found


def reference_answers(model_folder, python, folder):
    """The reference's answers to the fixed questions: those recorded for these weights, else (with `python`) fresh ones.

    None when there are neither.
    """
    file = held_out.ANSWERS
    if python:
        file = Path(folder) / "reference.json"
        command = [python, "-m", "tests.reference.record_miniature", "--model", model_folder, "--out", file]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if not file.is_file():
        return None
    recorded = json.loads(file.read_text(encoding="utf-8"))
    return recorded["answers"] if recorded["weights"] == held_out.checksum(model_folder) else None


def compare(model, processor, by_task, folder, batch_size):
    """Rows of task, the reference's answer and ours."""
    theirs = [text for texts in by_task.values() for text in texts]
    asked = held_out.fixed_questions(Path(folder))
    said = answers(model, processor, asked, batch_size)
    return [{"task": item.task, "reference": other, "said": text} for item, other, text in zip(asked, theirs, said)]


def report(name, right, count, note=""):
    low, high = interval(right, count)
    print(f"{name:24} {right:4d} of {count:4d}   {right / max(1, count):7.1%}   [{low:.1%}, {high:.1%}]{note}", flush=True)
    return {"right": right, "count": count, "low": low, "high": high}


def ask_tasks(model, processor, tasks, arguments, folder, speech, results, wrong):
    """Puts the questions of each task to the model; what it wrongly does not know is counted over all of them."""
    in_world = [0, 0]
    for task in tasks:
        count = max(1, round(held_out.TASKS[task] * arguments.share))
        asked = held_out.questions(task, count, arguments.seed, Path(folder), speech)
        said = answers(model, processor, asked, arguments.batch)
        pairs = list(zip(asked, said))
        results[task] = report(task, sum(text == item.answer for item, text in pairs), count)
        wrong += [
            {"task": task, "messages": str(item.messages), "answer": item.answer, "said": text}
            for item, text in pairs
            if text != item.answer
        ]
        if task in PARTS:
            key, name, belongs = PARTS[task]
            chosen = [text == item.answer for item, text in pairs if belongs(item.answer)]
            results[key] = report(f"  asked for {name}", sum(chosen), len(chosen))
        known = [text == UNKNOWN for item, text in pairs if item.answer != UNKNOWN]
        in_world = [in_world[0] + sum(known), in_world[1] + len(known)]
    if in_world[1]:
        results["does_not_know_in_world"] = report("wrongly does not know", *in_world)


def report_round_trips(model, processor, arguments, results, wrong):
    """Digit strings spoken by each speaker and heard again; whether the speech stopped, and what follows its last sound."""
    for speaker, rows in round_trips(model, processor, arguments.round_trips, arguments.seed, arguments.batch).items():
        right = sum(row["asked"] == row["heard"] for row in rows)
        stopped = sum(row["stopped"] and row["tail_s"] <= MAX_TAIL_S for row in rows)
        longest = max((row["tail_s"] for row in rows), default=0)
        note = f"   {stopped} of {len(rows)} stopped by themselves, longest silence at the end {longest:.2f} s"
        found = report(f"round trip, {speaker}", right, len(rows), note)
        results[f"round_trip_{speaker}"] = found | {"stopped": stopped, "longest_tail_s": longest}
        wrong += [
            {"task": "round_trip", "speaker": speaker, **row}
            for row in rows
            if row["asked"] != row["heard"] or not row["stopped"]
        ]


def main():
    arguments = parse_arguments()
    mesh, begin = start(), time.perf_counter()
    if not mesh.speaks:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(arguments.model)
    wanted = arguments.tasks or [*held_out.TASKS, *EXTRAS]
    results, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        speech = held_out.load_speech()
        if arguments.fresh_voices:
            path = Path(folder) / "clips.npz"
            make_clips(path, {"digits": 200, "sum": 60, "outside": 40}, heard=False, seed=10_000 + arguments.seed)
            speech = load_clips(path)
        print(f"{'task':24} {'right':>4}            share     95 % confidence")
        tasks = [task for task in wanted if task in held_out.TASKS]
        ask_tasks(model, processor, tasks, arguments, folder, speech, results, wrong)
        if "round_trip" in wanted and model.has_talker:
            report_round_trips(model, processor, arguments, results, wrong)
        python = arguments.reference_python if mesh.size == 1 else None
        by_task = reference_answers(arguments.model, python, folder) if "same" in wanted else None
        if by_task is not None:
            rows = compare(model, processor, by_task, folder, arguments.batch)
            different = [row for row in rows if row["reference"] != row["said"]]
            results["same_as_reference"] = report("same as the reference", len(rows) - len(different), len(rows))
            wrong += different
    seconds = time.perf_counter() - begin
    print(f"{seconds:.0f} s, {mesh.size} process(es)")
    if arguments.json and mesh.speaks:
        about = {
            "seed": arguments.seed,
            "processes": mesh.size,
            "fresh_voices": arguments.fresh_voices,
            "seconds": round(seconds),
        }
        text = json.dumps({"about": about, "results": results, "wrong": wrong}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

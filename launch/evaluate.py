"""Asks the miniature what it has not seen, and counts the right answers, task by task; then listens to its own speech.

    python launch/evaluate.py --model examples/miniature
    python launch/evaluate.py --seed 7 --fresh-voices                    # needs espeak-ng
    python launch/evaluate.py --tasks same --reference-python PYTHON     # the same answers as PyTorch transformers?
    python launch/evaluate.py --against DIR                              # what another checkpoint answers to the same questions
    python launch/evaluate.py --model DIR --quantize int4 --questions FILE
    msrun --worker_num=2 --local_worker_num=2 --join=True launch/evaluate.py

Under msrun the processes share the model; rank 0 prints and writes.

A comparison (--against, --quantize) says how many answers change, how far the distributions of the next token are from each other
along the first one's answers (KL divergence in nats, share of positions at which both choose the same token), and how well each
hears its own speech. A checkpoint that does not know the miniature's world is asked --questions, conversations of yours, or
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
from pathlib import Path

import numpy as np
import soxr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.miniature import held_out
from examples.miniature.training.voices import load_clips, make_clips
from examples.miniature.training.world import DIRECTIONS, UNKNOWN, digit_string
from ms_omni import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from ms_omni.bench.comparing import Asked, beginning, compare, errors, interval, of_each_task, random_prompts, words, write
from ms_omni.errors import InputError, OmniError
from ms_omni.input.messages import checked, read_batch, read_values, spoken_turn
from ms_omni.outputs import AudioChunk, StreamEnd
from ms_omni.parallel import start

EXTRAS = ("round_trip", "same")  # its own speech in its own ears; answers beside the reference's
PARTS = {  # questions of a task that are counted once more: key, name, by the right answer
    "motion": ("direction", "the direction", lambda answer: answer in DIRECTIONS),
    "motion_and_digits": ("both_parts", "both parts", lambda answer: " and " in answer),
}
VOCABULARY = "vocab.json"  # a checkpoint with the miniature's own file of this name knows its world
ANSWER_TOKENS = 32  # of an answer at most
HEARD = "What number do you hear?"
TRANSCRIBED = "Transcribe the audio into text."  # of a question of the user's, as Qwen's evaluations ask for it
WORDS = 30  # of a question that are spoken
SPEECH_HZ, HEARING_HZ = 24_000, 16_000
QUIET = 0.02  # of the loudest sample: below it is silence or noise
MAX_TAIL_S = 1.5
MAX_FRAMES = 200  # of one utterance: 16 s
WORLD = ("tasks", "share", "batch", "round_trips", "fresh_voices")
ASKED = {  # what is asked: the options that change it, beside the seed
    "the evaluation of one checkpoint": (*WORLD, "reference_python"),
    "a comparison in the miniature's world": (*WORLD, "answer_tokens"),
    "a comparison by --questions": ("questions", "round_trips", "answer_tokens"),
    "a comparison by random prompts": ("prompts", "prompt_tokens", "answer_tokens"),
}
ONE, IN_WORLD, QUESTIONS, PROMPTS = ASKED
DEFAULTS = {"share": 1.0, "batch": 10, "round_trips": 40, "prompts": 16, "prompt_tokens": 64, "answer_tokens": 32}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    arguments.asked = what_is_asked(arguments)
    for name in sorted({name for names in ASKED.values() for name in names}):
        if getattr(arguments, name) not in (None, False) and name not in ASKED[arguments.asked]:
            parser.error(f"--{name.replace('_', '-')} changes nothing in {arguments.asked}; leave it out")
    tasks = arguments.tasks or ["round_trip"]
    if arguments.round_trips is not None and "round_trip" not in tasks:
        parser.error("--round-trips is for --tasks round_trip; leave it out")
    if arguments.asked == IN_WORLD and "same" in tasks:
        parser.error("--tasks same belongs to the evaluation of one checkpoint; leave it out of a comparison")
    vars(arguments).update({name: value for name, value in DEFAULTS.items() if getattr(arguments, name) is None})
    return arguments


def positive(text):
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return number


def what_is_asked(arguments):
    """A key of ASKED."""
    if not (arguments.against or arguments.quantize):
        return ONE
    if arguments.questions:
        return QUESTIONS
    own = Path(arguments.model) / VOCABULARY
    knows = own.is_file() and own.read_bytes() == (ROOT / "examples/miniature" / VOCABULARY).read_bytes()
    return IN_WORLD if knows else PROMPTS


def of_rank_0(team, make, *arguments, **options):
    """What rank 0 makes of these arguments, on every rank: encoded videos may differ in a bit between processes."""
    if team is None:
        return make(*arguments, **options)
    data = pickle.dumps(dict(make(*arguments, **options))) if team.mesh.rank == 0 else b""
    return pickle.loads(team.comm.gather_bytes(data)[0])


def batches(processor, questions, size):
    """The questions as `Asked`, and which ones each holds: only what has its sound woven in the same way goes together."""
    for with_sound in (False, True):
        chosen = [index for index, item in enumerate(questions) if item.use_audio_in_video is with_sound]
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]

            def inputs(model, part=part, with_sound=with_sound):
                asked = [questions[index].messages for index in part]
                options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
                return of_rank_0(model.team, processor.apply_chat_template, asked, use_audio_in_video=with_sound, **options)

            known = [questions[index].answer for index in part]
            yield part, Asked(questions[part[0]].task, inputs, known, {"use_audio_in_video": with_sound})


def answers(model, processor, questions, batch_size, tokens=ANSWER_TOKENS):
    """What the model says to each question, greedily."""
    texts = [None] * len(questions)
    for part, asked in batches(processor, questions, batch_size):
        for index, said in zip(part, write(model, processor, asked, asked.inputs(model), tokens)):
            texts[index] = said.text
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


def hear(model, processor, texts, speaker, question, seed, batch_size, tokens=ANSWER_TOKENS):
    """Results of texts that are spoken and heard again."""
    spoken = [speak(model, processor, text, speaker, seed + index) for index, text in enumerate(texts)]
    heard = []
    for text, (sound, _) in zip(texts, spoken):
        audio = soxr.resample(np.pad(sound, (0, max(0, 4800 - len(sound)))), SPEECH_HZ, HEARING_HZ)
        content = [{"type": "audio", "audio": audio}, {"type": "text", "text": question}]
        heard.append(held_out.Question("round_trip", [{"role": "user", "content": content}], text, False))
    said = answers(model, processor, heard, batch_size, tokens)
    return [
        {"asked": text, "heard": answer, "stopped": stopped, "tail_s": round(float(tail_s(sound)), 2)}
        for text, answer, (sound, stopped) in zip(texts, said, spoken)
    ]


def round_trips(model, processor, count, seed, batch_size):
    """Per speaker the results of digit strings that are spoken and heard again."""
    found = {}
    for speaker in model.config.talker_config.speaker_id:
        rng = random.Random(f"{seed}/{speaker}")
        texts = [digit_string(rng) for _ in range(count)]
        found[speaker] = hear(model, processor, texts, speaker, HEARD, seed, batch_size)
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


def beside_reference(model, processor, by_task, folder, batch_size):
    """Rows of task, the reference's answer and ours."""
    theirs = [text for texts in by_task.values() for text in texts]
    asked = held_out.fixed_questions(Path(folder))
    said = answers(model, processor, asked, batch_size)
    return [{"task": item.task, "reference": other, "said": text} for item, other, text in zip(asked, theirs, said)]


def read_questions(path):
    """Conversations of a file. Raises `InputError` that names the first value which is none."""
    found = []
    for where, row in read_values(path):
        known = isinstance(row, dict) and isinstance(row.get("messages"), list) and not set(row) - {"messages", "answer"}
        if not known or not isinstance(row.get("answer", ""), str):
            raise InputError(f'{where}: expected {{"messages": [...]}}, with "answer", a text, if you know it')
        found.append(held_out.Question("questions", checked(row["messages"], where), row.get("answer"), False))
    if not found:
        raise InputError(f"--questions {path} holds no conversation")
    return found


def last_words(messages):
    """What a conversation's last message says in writing, cut to what is spoken in some seconds; "" without words."""
    (read,), _ = read_batch([messages])
    text = " ".join(" ".join(read[-1].texts).split())
    return beginning(text, WORDS) if words(text) else ""


def against(arguments, processor, folder):
    """Asks both checkpoints, see `compare`; beside its answers stand, of each, the results of what it spoke and heard again, or in words
    why there are none, or None where nobody asked for them.
    """
    speaks = arguments.round_trips > 0 and "round_trip" in (arguments.tasks or ["round_trip"])
    model_class, asked, questions = Qwen3OmniMoeForConditionalGeneration, [], []
    if arguments.asked == QUESTIONS:
        questions = read_questions(arguments.questions)
        asked += [item for _, item in batches(processor, questions, 1)]
    elif arguments.asked == IN_WORLD:
        speech = spoken_clips(arguments, folder)
        for task in (name for name in arguments.tasks or held_out.TASKS if name in held_out.TASKS):
            count = max(1, round(held_out.TASKS[task] * arguments.share))
            made = held_out.questions(task, count, arguments.seed, folder, speech)
            asked += [item for _, item in batches(processor, made, arguments.batch)]
    else:
        config = Qwen3OmniMoeConfig.from_pretrained(arguments.model)
        asked += random_prompts(config, processor, arguments.prompts, arguments.prompt_tokens, arguments.seed)

    def listen(model):
        if not speaks:
            return None
        if not model.has_talker:
            return "it has no talker"
        if arguments.asked == IN_WORLD:
            found = round_trips(model, processor, arguments.round_trips, arguments.seed, arguments.batch)
            return [row for rows in found.values() for row in rows]
        texts = [text for text in (last_words(item.messages) for item in questions) if text][: arguments.round_trips]
        speaker = next(iter(model.config.talker_config.speaker_id))
        found = hear(model, processor, texts, speaker, TRANSCRIBED, arguments.seed, 1, 4 * WORDS)
        return found or "there are no words to speak"

    quantised = {"quantize": arguments.quantize, "quantize_group": arguments.group} if arguments.quantize else {}
    loads = (
        lambda: model_class.from_pretrained(arguments.model),
        lambda: model_class.from_pretrained(arguments.against or arguments.model, **quantised),
    )
    (folder / "logits").mkdir()
    return compare(loads, processor, asked, folder / "logits", arguments.answer_tokens, listen)


def report_changes(found, unit):
    """Prints the comparison; returns its figures. unit: what errors of speech are counted in, "digits" or "words"."""
    results = {"answers": dict(of_each_task(found["answers"])), "next_token": found["next_token"], "speech": {"unit": unit}}
    print(f"{'task':24} {'asked':>6} {'right, first':>13} {'second':>7} {'lost':>5} {'won':>5} {'else':>5}")
    for name, row in results["answers"].items():
        right = [str(row[f"{side}_right"]) if row["known"] else "-" for side in ("first", "second")]
        changed = (row["right_to_wrong"], row["wrong_to_right"], row["different"])
        print(f"{name:24} {row['count']:6} {right[0]:>13} {right[1]:>7} " + " ".join(f"{number:5}" for number in changed))
    print("lost: right, then wrong; won: wrong, then right; else: another answer, neither of them right or nobody knows")
    if row := results["next_token"]:
        print(
            f"next token: KL divergence {row['kl_mean']:.3g} nats (mean), {row['kl_p99']:.3g} (99th percentile); "
            f"the same choice at {row['greedy_agreement']:.2%} of {row['positions']:,} positions"
        )
    cut = list if unit == "digits" else words
    for side, rows in zip(("first", "second"), found["beside"]):
        if isinstance(rows, str):
            print(f"its own speech in its own ears, {side + ':':8} left out, {rows}")
        elif rows:
            wrong = sum(errors(cut(item["asked"]), cut(item["heard"])) for item in rows)
            count = sum(len(cut(item["asked"])) for item in rows)
            results["speech"][side] = {"errors": wrong, "count": count, "stopped": sum(item["stopped"] for item in rows)}
            print(f"its own speech in its own ears, {side + ':':8} {wrong} of {count} {unit} wrong ({wrong / count:.2%})")
    return results


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


def spoken_clips(arguments, folder):
    """Those beside the miniature, or new ones."""
    if not arguments.fresh_voices:
        return held_out.load_speech()
    path = folder / "clips.npz"
    make_clips(path, {"digits": 200, "sum": 60, "outside": 40}, heard=False, seed=10_000 + arguments.seed)
    return load_clips(path)


def evaluate(arguments, processor, folder, alone):
    """Puts everything that is wanted to one checkpoint; returns (results, wrong answers). alone: without other processes."""
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(arguments.model)
    wanted = arguments.tasks or [*held_out.TASKS, *EXTRAS]
    results, wrong = {}, []
    speech = spoken_clips(arguments, folder)
    print(f"{'task':24} {'right':>4}            share     95 % confidence")
    tasks = [task for task in wanted if task in held_out.TASKS]
    ask_tasks(model, processor, tasks, arguments, folder, speech, results, wrong)
    if "round_trip" in wanted and model.has_talker:
        report_round_trips(model, processor, arguments, results, wrong)
    elif "round_trip" in wanted:
        print("round trip: left out, it has no talker")
    python = arguments.reference_python if alone else None
    by_task = reference_answers(arguments.model, python, folder) if "same" in wanted else None
    if by_task is not None:
        rows = beside_reference(model, processor, by_task, folder, arguments.batch)
        different = [row for row in rows if row["reference"] != row["said"]]
        results["same_as_reference"] = report("same as the reference", len(rows) - len(different), len(rows))
        wrong += different
    elif "same" in wanted:
        print(
            "same as the reference: left out, no answers to these weights are recorded (one process with --reference-python asks)"
        )
    return results, wrong


def main():
    arguments = parse_arguments()
    mesh, begin = start(), time.perf_counter()
    if not mesh.speaks:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.asked != ONE:
            found = against(arguments, processor, Path(folder))
            results = report_changes(found, "words" if arguments.asked == QUESTIONS else "digits")
            changed = [row for row in found["answers"] if row["first"] != row["second"]]
            content = {"results": results, "changed": changed}
        else:
            results, wrong = evaluate(arguments, processor, Path(folder), mesh.size == 1)
            content = {"results": results, "wrong": wrong}
    seconds = round(time.perf_counter() - begin)
    print(f"{seconds} s, {mesh.size} process(es)")
    if arguments.json and mesh.speaks:
        about = {
            "seed": arguments.seed,
            "processes": mesh.size,
            "fresh_voices": arguments.fresh_voices,
            "seconds": seconds,
            "checkpoints": compared_names(arguments),
        }
        arguments.json.write_text(json.dumps({"about": about, **content}, indent=1) + "\n", encoding="utf-8")


def compared_names(arguments):
    """In words: the one that was asked, or the two."""
    how = f"{arguments.model}, {arguments.quantize}{f' in groups of {arguments.group}' if arguments.group else ''}"
    second = arguments.against or (how if arguments.quantize else None)
    return [arguments.model, *([second] if second else [])]


if __name__ == "__main__":
    try:
        main()
    except OmniError as error:
        sys.exit(f"error: {error}")

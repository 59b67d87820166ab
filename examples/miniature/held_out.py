"""Questions that the miniature has not seen, as a user would ask them: files, pictures and sounds of any size.

The spoken clips beside this file are by voices, accents and speeds that its training did not have. No PyTorch and no
espeak-ng are needed.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from .training.conversations import Conversation, Maker, Picture, Sound, Turn, Video
from .training.voices import RATE_HZ, Clip
from .training.world import UNKNOWN

FOLDER = Path(__file__).resolve().parent
SPEECH = FOLDER / "held_out.flac"
ANSWERS = FOLDER / "held_out_answers.json"  # what transformers said to `fixed_questions`
SIZES = ((256, 256), (320, 240), (240, 320), (400, 300), (300, 300), (384, 384), (200, 150), (480, 360))
VIDEO_SIZES = ((256, 256), (384, 256), (256, 192), (256, 384))  # x264 writes the same file every time for such widths
VIDEO_FPS = 10
TASKS = {  # how many of each are asked by default
    "digits": 120,
    "spoken_sum": 40,
    "shape": 100,
    "two_shapes": 40,
    "motion": 60,
    "motion_and_digits": 40,
    "sum": 100,
    "repeat": 40,
    "strange_text": 60,
    "strange_sound": 30,
    "strange_picture": 30,
    "several_turns": 30,
}
LAST_TURNS = ("digits", "shape", "two_shapes", "motion", "motion_and_digits", "sum", "repeat", "strange_text")
FIXED_SEED = 2024  # of the 200 questions whose answers were recorded with transformers
FIXED = {
    "digits": 36,
    "spoken_sum": 10,
    "shape": 32,
    "two_shapes": 14,
    "motion": 20,
    "motion_and_digits": 20,
    "sum": 20,
    "repeat": 12,
    "strange_text": 14,
    "strange_sound": 6,
    "strange_picture": 6,
    "several_turns": 10,
}
OUTSIDE = ("strange_text", "strange_sound", "strange_picture")  # tasks whose right answer is that it does not know
ORDINARY_PROMPTS = """What is the capital of France?|Who wrote Romeo and Juliet?|How do I bake bread?|What time is it?
Tell me a story.|What is your favourite colour?|How far away is the moon?|Translate "good morning" into German.
Why is the sky blue?|Who are you?|Write a Python function that sorts a list.|What is 17 times 23?|What is 100 minus 42?
Summarise the news.|Is it going to rain tomorrow?|Hello, how are you?|What is the square root of 144?|Sing a song.
Who was the first person on the moon?|How many people live in China?|What does "serendipity" mean?|Recommend a book.
When did the war end?|What is the best restaurant nearby?|Can you play chess?|How do airplanes fly?|Book a flight for me.
What is the boiling point of water?|Who painted the Mona Lisa?|Give me a recipe for soup.|What is the tallest mountain?
How old is the universe?|What language do they speak in Brazil?|Do you like music?|Explain quantum mechanics.
What should I wear today?|Who won the football match?|How do I get to the station?|Tell me a joke about cats.
What is the meaning of life?|Turn on the lights.|Set an alarm for seven.|What is the currency of Japan?
Who is the president?|How many legs does a spider have?|Name three fruits.|What is the opposite of hot?
Why do cats purr?|Where is Berlin?|What is 12 plus 30?|Spell "necessary".|What is DNA?|How tall is the Eiffel Tower?
Good night!|Can you help me with my homework?|What is a black hole?|Who invented the telephone?|What year is it?
Describe your childhood.|Which team is the best?|How does a computer work?""".replace("\n", "|").split("|")


@dataclass(frozen=True)
class Question:
    """A conversation in the schema of `apply_chat_template`, and the right answer."""

    task: str
    messages: list
    answer: str
    use_audio_in_video: bool


class UsersMaker(Maker):
    """Pictures and videos of the sizes and frame rates that files have."""

    moving = False

    def several_turns(self):
        """A conversation of three to six turns on different matters; the answers before the last one are given."""
        turns = self.earlier_turns(self.rng.randint(2, 5))
        return Conversation("several_turns", (*turns, getattr(self, self.rng.choice(LAST_TURNS))()))

    def _size(self):
        return self.rng.choice(VIDEO_SIZES if self.moving else SIZES)

    def _frame_count(self, seconds):
        return round(seconds * VIDEO_FPS)

    def _video(self, clip=None):
        self.moving = True
        made = super()._video(clip)
        self.moving = False
        return made


def load_speech(path: Path = SPEECH) -> dict[str, list[Clip]]:
    """The spoken clips by kind."""
    samples, rate_hz = soundfile.read(path, dtype="int16")
    if rate_hz != RATE_HZ:
        raise ValueError(f"{path} has {rate_hz} Hz, expected {RATE_HZ}")
    clips: dict[str, list[Clip]] = {}
    for entry in json.loads(path.with_suffix(".json").read_text(encoding="utf-8")):
        part = samples[entry["first"] : entry["first"] + entry["samples"]]
        clips.setdefault(entry["kind"], []).append(Clip(part, entry["kind"], entry["meaning"]))
    return clips


def save_speech(clips: dict[str, list[Clip]], path: Path = SPEECH) -> None:
    """Keep clips in one lossless file with an index beside it."""
    kept = [clip for by_kind in clips.values() for clip in by_kind]
    soundfile.write(path, np.concatenate([clip.samples for clip in kept]), RATE_HZ, subtype="PCM_16")
    ends = np.cumsum([len(clip.samples) for clip in kept]).tolist()
    index = [
        {"first": end - len(clip.samples), "samples": len(clip.samples), "kind": clip.kind, "meaning": clip.meaning}
        for clip, end in zip(kept, ends)
    ]
    path.with_suffix(".json").write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")


def questions(task: str, count: int, seed: int, folder: Path, speech: dict[str, list[Clip]]) -> list[Question]:
    """`count` questions of a task; videos are written to `folder`. The first ones do not depend on `count`."""
    found = []
    for index in range(count):
        maker = UsersMaker(speech, random.Random(f"{seed}/{task}/{index}"), plain=True)
        conversation = maker.several_turns() if task == "several_turns" else maker.conversation(task)
        if task == "strange_text" and index < len(ORDINARY_PROMPTS):
            turn = Turn((ORDINARY_PROMPTS[index],), UNKNOWN)
            conversation = Conversation(task, (turn,))
        found.append(_question(conversation, folder / f"{task}-{index}"))
    return found


def fixed_questions(folder: Path) -> list[Question]:
    """The 200 questions of `FIXED`, the same ones every time; videos are written to `folder`."""
    speech = load_speech()
    return [item for task, count in FIXED.items() for item in questions(task, count, FIXED_SEED, folder, speech)]


def checksum(model: Path | str) -> str:
    """Of the weights in a checkpoint folder, to tell which ones recorded answers belong to: 16 hexadecimal digits."""
    return hashlib.sha256((Path(model) / "model.safetensors").read_bytes()).hexdigest()[:16]


def _question(conversation: Conversation, stem: Path) -> Question:
    messages, with_sound = [], False
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        content = [_item(part, stem.with_name(f"{stem.name}-{len(messages)}.mp4")) for part in turn.parts]
        with_sound |= any(isinstance(part, Video) and part.sound is not None for part in turn.parts)
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
    return Question(conversation.task, messages[:-1], conversation.turns[-1].answer, with_sound)


def _item(part, path: Path) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Sound):
        return {"type": "audio", "audio": part.samples}
    if isinstance(part, Picture):
        return {"type": "image", "image": Image.fromarray(part.pixels)}
    write_video(path, part.frames, VIDEO_FPS, None if part.sound is None else part.sound.samples)
    return {"type": "video", "video": str(path)}


def write_video(path: Path, frames: np.ndarray, fps: int, sound: np.ndarray | None = None) -> None:
    """H.264 pictures (uint8 `[T, H, W, 3]`) and AAC sound (float32 at 16 kHz) in an MP4."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "20", "threads": "1", "preset": "veryfast"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = None if sound is None else container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(video.encode(None))
        if audio is None:
            return
        samples = (np.clip(sound, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=RATE_HZ, frame_size=1024)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))

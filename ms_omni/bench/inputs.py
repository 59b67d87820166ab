"""The inputs of the scenarios as arrays, seeded, in one file that both sides read."""

import numpy as np

from ..config import Qwen3OmniMoeConfig
from ..files import write_file

PLAIN_IDS = 250  # the first ids of any tokenizer of this family are bytes and words, never placeholders
QUESTION = "What do you see and hear in this picture and this sound?"
CLIP_QUESTIONS = ("What happens in this video?", "Which colours come up in it, and in which order?")
CLIP_HZ = 2.0  # pictures of a video per second


def write_inputs(folder, sizes, seed, path, clip=False):
    """Writes `path` (.npz) with the inputs of every scenario for the checkpoint `folder`; returns its config.

    clip: also two questions about a video, which `serve` asks.
    """
    config = Qwen3OmniMoeConfig.from_pretrained(folder)
    arrays = media(config.thinker_config, sizes, seed)
    arrays["ids"] = np.random.default_rng([seed, 1]).integers(0, PLAIN_IDS, (max(sizes.batches), max(sizes.prefill)))
    if config.enable_audio_output:
        vocoder = config.code2wav_config
        shape = (1, vocoder.num_quantizers, sizes.wave_frames)
        arrays["codes"] = np.random.default_rng([seed, 2]).integers(0, vocoder.codebook_size, shape)
    arrays |= {f"question.{name}": value for name, value in question(folder, sizes.image_pixels // 2, 3.0, seed).items()}
    if clip:
        for name, text in (("first", CLIP_QUESTIONS[0]), ("second", CLIP_QUESTIONS[1])):
            asked = clip_question(folder, sizes.clip_s, sizes.clip_pixels, seed, text)
            arrays |= {f"video_{name}.{key}": value for key, value in asked.items()}
    write_file(path, lambda file: np.savez(file, **arrays))
    return config


def media(thinker, sizes, seed):
    """Pixels and mel frames as the encoders take them."""
    rng = np.random.default_rng([seed, 0])
    vision, audio = thinker.vision_config, thinker.audio_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def pixels(side, frames):
        step = vision.patch_size * vision.spatial_merge_size
        blocks = max(side // step, 1) * vision.spatial_merge_size
        grid = np.array([[max(frames // vision.temporal_patch_size, 1), blocks, blocks]], np.int64)
        return rng.standard_normal((grid.prod(), width), np.float32), grid

    arrays = {}
    arrays["image.pixels"], arrays["image.grid"] = pixels(sizes.image_pixels, 1)
    arrays["video.pixels"], arrays["video.grid"] = pixels(sizes.video_pixels, sizes.video_frames)
    arrays["audio.features"] = rng.standard_normal((1, audio.num_mel_bins, round(100 * sizes.audio_s)), np.float32)
    return arrays


def question(folder, side, seconds, seed, text=QUESTION):
    """Model inputs of one user turn with a picture of side x side pixels and a sound, by the checkpoint's processor."""
    from PIL import Image

    from ..input.processor import Qwen3OmniMoeProcessor

    rng = np.random.default_rng([seed, 3])
    picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    sound = 0.1 * rng.standard_normal(round(16_000 * seconds)).astype(np.float32)
    content = [{"type": "image", "image": picture}, {"type": "audio", "audio": sound}, {"type": "text", "text": text}]
    return _processed(Qwen3OmniMoeProcessor.from_pretrained(folder), content)


def clip_question(folder, seconds, pixels, seed, text):
    """Model inputs of one user turn with a video of so many seconds and `(width, height)` pixels, as the processor samples it."""
    from ..input.processor import Qwen3OmniMoeProcessor

    rng, (width, height) = np.random.default_rng([seed, 8]), pixels
    frames = rng.integers(0, 256, (round(seconds * CLIP_HZ), height, width, 3), np.uint8)
    content = [{"type": "video", "video": frames, "fps": CLIP_HZ}, {"type": "text", "text": text}]
    return _processed(Qwen3OmniMoeProcessor.from_pretrained(folder), content)


def _processed(processor, content):
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return {name: np.asarray(value) for name, value in inputs.items()}


def part(arrays, prefix):
    """The arrays named `prefix.*`, without the prefix."""
    return {name[len(prefix) + 1 :]: arrays[name] for name in arrays if name.startswith(prefix + ".")}

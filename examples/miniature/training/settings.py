"""Geometry, tokenizer and settings files of the miniature."""

import copy
import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from ms_omni.input.tiny_processor import LINE_FEED, ROLE_WORDS, SPACE, SPLIT_PATTERN, write_processor_files

from . import outside, world

REPOSITORY = Path(__file__).resolve().parents[3]
BASE_VOCABULARY = 560  # bytes and merges; Qwen's added tokens come on top
CODES = 256  # entries of each codebook
CODE_GROUPS = 16
SPEAKERS = ("ethan", "chelsie")
PIXEL_SCALE = 3  # pictures are this much larger in use than in training: see `export`
MIN_PIXELS, MAX_PIXELS = 128 * 32 * 32, 192 * 32 * 32  # of a resized picture in use: about 16 tokens
PROMPTS = {
    "transcription_prompt": "Transcribe the speech into text.",
    "translation_prompt": "Translate the speech into English.",
}
"""What servers ask for sounds that are to be written down: near to what it was taught."""


def write_settings(folder: Path, patch_size: int = 16) -> dict:
    """Write tokenizer, template and settings files, and return the configuration as a dict (config.json's content).

    Args:
        folder: where to write the processor's files.
        patch_size: 16 in training, `PIXEL_SCALE` times that in the published files.
    """
    ids = write_processor_files(folder, *_train_tokenizer())
    path = folder / "preprocessor_config.json"
    preprocessor = json.loads(path.read_text())
    preprocessor.update(patch_size=patch_size, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    path.write_text(json.dumps(preprocessor, indent=2) + "\n")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **PROMPTS}, indent=2) + "\n")
    config = _geometry(ids)
    config["thinker_config"]["vision_config"]["patch_size"] = patch_size
    return config


def _train_tokenizer() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE over the miniature's sentences."""
    rng = random.Random(0)
    lines = [f"{role}\n" for role in ROLE_WORDS for _ in range(3000)]
    for _ in range(3000):
        kind = rng.choice(tuple(world.QUESTIONS))
        lines.append(world.question(rng, kind, a=1, b=2, text=world.sayable(rng)))
        colour, shape = rng.choice(tuple(world.COLOURS)), rng.choice(world.SHAPES)
        answers = (world.phrase(colour, shape), world.UNKNOWN, *world.DIRECTIONS, colour, shape, "left and 1")
        lines += [rng.choice(answers), f"{world.phrase(colour, shape)} and {world.phrase(colour, shape)}"]
        lines += [f"Say {colour}.", f"Say {shape}.", f"Say {rng.choice(tuple(world.DIRECTIONS))}."]
        if rng.random() < 0.5:
            lines.append(outside.outside_text(rng))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=BASE_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    trained = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(sorted(trained["vocab"].items(), key=lambda item: item[1]))
    words = (*world.DIRECTIONS, *world.COLOURS, *world.SHAPES)
    missing = {*ROLE_WORDS, LINE_FEED, *words, *(SPACE + word for word in (*words, "and", "not", "know"))} - {*vocabulary}
    if missing:
        raise RuntimeError(f"the tokenizer splits {sorted(missing)}; raise BASE_VOCABULARY")
    return vocabulary, [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in trained["merges"]]


def _geometry(ids: dict[str, int]) -> dict:
    """`configs/tiny.json` with the miniature's sizes and this tokenizer's ids."""
    config = json.loads((REPOSITORY / "configs/tiny.json").read_text())
    config = copy.deepcopy(config)
    for node in (config, config["thinker_config"], config["talker_config"]):
        node.update({key: ids[key] for key in ids if key in node})
    thinker, talker = config["thinker_config"], config["talker_config"]
    thinker["text_config"].update(
        vocab_size=ids["vocab_size"],
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        intermediate_size=256,
    )
    thinker["audio_config"].update(
        d_model=128,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=384,
        downsample_hidden_size=16,
        output_dim=192,
    )
    thinker["vision_config"].update(
        depth=3,
        hidden_size=128,
        num_heads=4,
        intermediate_size=384,
        out_hidden_size=192,
        deepstack_visual_indexes=[1],
        num_position_embeddings=64,
    )
    talker.update(
        accept_hidden_layer=2,
        thinker_hidden_size=192,
        num_code_groups=CODE_GROUPS,
        speaker_id={name: CODES + 64 + index for index, name in enumerate(SPEAKERS)},
        codec_pad_id=CODES,
        codec_bos_id=CODES + 1,
        codec_eos_token_id=CODES + 2,
        codec_nothink_id=CODES + 7,
        codec_think_bos_id=CODES + 8,
        codec_think_eos_id=CODES + 9,
    )
    talker["text_config"].update(
        vocab_size=CODES + 1024,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=128,
        intermediate_size=256,
    )
    talker["text_config"]["rope_scaling"]["mrope_section"] = [6, 5, 5]
    talker["code_predictor_config"].update(
        vocab_size=CODES,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_code_groups=CODE_GROUPS,
    )
    config["code2wav_config"].update(
        codebook_size=CODES,
        num_quantizers=CODE_GROUPS,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=192,
        sliding_window=12,
        decoder_dim=128,
        layer_scale_initial_scale=0.1,
    )
    return config

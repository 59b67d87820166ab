"""The reference implementation (PyTorch, transformers 5.23.0), loaded and with its known defects repaired.

Each repair is named, so that what the recorded values follow is plain:
 - `_count_silent_videos`: under `use_audio_in_video` the reference counts only videos with sound, so a silent video in
   the same prompt shifts or loses every later position. Repaired: silent videos are counted as well.
 - `_give_talker_audio_config`: the talker's position code reads `config.audio_config`, which only the thinker's
   configuration has; speech after audio together with an image or a video raises. Repaired: it is handed over.
 - `SPEECH_ARGUMENTS`: `use_audio_in_video` is not forwarded to the talker's positions; the recorder passes it with the
   talker's prefix.
"""

import inspect
import sys
import textwrap

sys.modules.setdefault("torchvision", None)  # transformers looks for it although the model never uses it

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import Qwen3OmniMoeForConditionalGeneration  # noqa: E402
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling  # noqa: E402

EXPECTED_VERSION = "5.23.0"


def load(folder, experts_implementation="eager", dtype=torch.float32) -> Qwen3OmniMoeForConditionalGeneration:
    """Load a checkpoint folder in a dtype with the repairs above. Raises RuntimeError for another version.

    experts_implementation: None for transformers' default, a grouped kernel that takes only widths that are multiples of
    four.
    """
    if transformers.__version__ != EXPECTED_VERSION:
        raise RuntimeError(f"recorded values follow transformers {EXPECTED_VERSION}, found {transformers.__version__}")
    _count_silent_videos()
    model, report = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        experts_implementation=experts_implementation,
        output_loading_info=True,
    )
    problems = {key: value for key, value in report.items() if value}
    if problems:
        raise RuntimeError(f"the reference does not load {folder} completely: {problems}")
    _give_talker_audio_config(model)
    _check_rope_bases(model, folder)
    return model.eval()


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in inputs.items()}


def _count_silent_videos():
    owner = modeling.Qwen3OmniMoePreTrainedModelForConditionalGeneration
    source = textwrap.dedent(inspect.getsource(owner.get_rope_index))
    if "silent_nums" in source or getattr(owner.get_rope_index, "counts_silent_videos", False):
        return
    edits = {
        "(vision_tokens == audio_start_token_id).sum()\n": "((vision_tokens == audio_start_token_id)"
        " | (vision_tokens == video_token_id)).sum()\n",
        "image_nums + audio_nums if use_audio_in_video": "image_nums + (vision_tokens == video_token_id).sum()"
        " + audio_nums if use_audio_in_video",
    }
    for old, new in edits.items():
        if source.count(old) != 1:
            raise RuntimeError(f"the reference's get_rope_index is not the expected one: {old.strip()!r}")
        source = source.replace(old, new)
    scope = {}
    exec(compile(source, "patched_get_rope_index", "exec"), modeling.__dict__, scope)
    scope["get_rope_index"].counts_silent_videos = True
    owner.get_rope_index = scope["get_rope_index"]


def _give_talker_audio_config(model):
    if model.has_talker:
        model.talker.config.audio_config = model.thinker.config.audio_config


def _check_rope_bases(model, folder):
    """The rope bases the reference uses are those of the file, not its class defaults."""
    import json
    from pathlib import Path

    config = json.loads((Path(folder) / "config.json").read_text())
    stacks = [("thinker_config.text_config", model.thinker.model.language_model)]
    if model.has_talker:
        stacks += [
            ("talker_config.text_config", model.talker.model),
            ("talker_config.code_predictor_config", model.talker.code_predictor.model),
            ("code2wav_config", model.code2wav.pre_transformer),
        ]
    for path, stack in stacks:
        node = config
        for part in path.split("."):
            node = node[part]
        theta = node["rope_theta"] if "rope_theta" in node else node["rope_parameters"]["rope_theta"]
        used = stack.rotary_emb.config.rope_parameters["rope_theta"]
        if float(theta) != float(used):
            raise RuntimeError(f"{path}: the file says rope_theta {theta}, the reference uses {used}")

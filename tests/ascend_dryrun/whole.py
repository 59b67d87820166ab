"""The miniature from its files to an answer, operator by operator: what a user's first call runs."""

from pathlib import Path

import ms_omni.modeling.ops as ops
from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor

from .kernel_log import KernelLog, Launches

EXAMPLES = Path(__file__).parents[2] / "examples"
MINIATURE = EXAMPLES / "miniature"
MEDIA = {
    "image": {"type": "image", "image": str(MINIATURE / "samples/star.jpg")},
    "video": {"type": "video", "video": str(EXAMPLES / "video.mp4")},
    "audio": {"type": "audio", "audio": str(MINIATURE / "samples/digits.wav")},
}
TOKENS = 3


def whole(kind: str, log: KernelLog) -> Launches:
    """A question with one medium, or one that is answered in speech; counted from the first token of the prompt on."""
    ops.settle = lambda dtype: None  # nothing is computed, so there is nothing to compare operators by
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(str(MINIATURE), compile_steps=False, progress=False)
    processor = Qwen3OmniMoeProcessor.from_pretrained(str(MINIATURE))
    content = [*([MEDIA[kind]] if kind in MEDIA else []), {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    log.skip()
    speech = {"thinker_min_new_tokens": TOKENS, "talker_max_new_tokens": TOKENS}
    model.generate(**inputs, max_new_tokens=TOKENS, **(speech if kind == "speech" else {"return_audio": False}))
    launches = log.launched()
    if model.own_engine._weights.changed():
        raise AssertionError("weights have moved with the first answer, so the next one prepares everything again")
    return launches

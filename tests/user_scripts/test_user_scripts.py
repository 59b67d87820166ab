"""Scripts that users bring, each run as a file in a process and a folder of its own; nothing but imports and paths is ours.

Expected is the whole of what a script prints, so each line of these lists is one promise of the README.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ms_omni
from ms_omni.demo.samples import find_miniature

HERE = Path(__file__).resolve().parent
INSTALLED = Path(ms_omni.__file__).resolve().parents[1]  # the clone, or where a wheel went
LIMIT_S = 600

EXPECTED = {
    "five_lines": """
9 (1, 1, True)
""",
    "readme_snippets": """
single: ['an orange star and 374']
seconds of speech over 1: True at 24000
voice: Ethan True
voice: Chelsie True
video: ['up and 52']
three media: 1 None
batch: ['an orange star', '374', 'I do not know', 'an orange star and 374'] None
""",
    "cookbooks": """
image: an orange star None
audio: 9061
caption: str
video: left
dialogue: up and 52 int16 1 True
function call: 374
""",
    "web_demo": """
Chelsie wrote: 9
Chelsie said: 24000 True
Ethan wrote: an orange star
Ethan said: 24000 True
Chelsie wrote: 374
Chelsie said: 24000 True
streamed: 374 True
""",
    "model_page": """
single: up and 52
batch: ['up and 52', '374', 'I do not know', 'an orange star and 374']
4.57: ['9'] None
5.x: ['9']
spk: Chelsie True
spk: Ethan True
thinker: up and 52
pixels: 100352 153664
set: 153664
talker: False
""",
    "transformers_checks": """
names: ['attention_mask', 'feature_attention_mask', 'image_grid_thw', 'input_features', 'input_ids', 'pixel_values'] 2 (6, 3)
decode: an orange star and 374
batch_decode: ['an orange star and 374', 'an orange star and 374']
audio: 2 True True
text: ['9', '9']
audio tokens: True
image_processor: True
constructor: True
saved: True ['feature_extractor', 'image_processor', 'processor_class', 'video_processor']
config: True True
""",
    "other_spellings": """
OpenAI: 374
DashScope: 374
base64: 374
datasets decoded: 374
datasets stored: 374
Gradio: 374
stereo: 374
audio_url: 374
keys that are None: 374
image_url: an orange star
input_image: an orange star
base64 picture: an orange star
datasets picture: an orange star
greedy: 9
greedy: 9
greedy: 9
greedy: 9
""",
    "public_scripts": """
loaded: CPU True False
trimmed: an orange star
speech: float32 True True
config: 2
criteria: 3
processor: False
an orange star<|im_end|>
streamed: an orange star
turns: ['9', '3', '6']
""",
    "probing_script": """
layers: 4 192
steps: True 5 (1, 1, 192)
answer: ['374']
layer 2: True
embeds: ['9']
hook: True
tower: True
resized: 1 True True
still: ['374']
trainable: ['lm_head.weight']
shards: True
reloaded: ['374']
""",
    "training_loop": """
spread: 0.02
falls: True at first near log(99): True
gradients: True
saved: True ['.ms_omni.json', 'config.json', 'model.safetensors']
generates: (2, 9)
published: 128 2
""",
    "mindone_example": """
['374']
float32 True
""",
}
SLOW = ("mindone_example", "other_spellings")  # their kinds have quick tests of their own


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXPECTED])
def test_script(name, tmp_path):
    path = os.pathsep.join(filter(None, [str(INSTALLED), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), str(find_miniature())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == EXPECTED[name].strip().splitlines()


def test_every_script_is_run():
    assert {path.stem for path in HERE.glob("*.py")} - {"__init__", "test_user_scripts"} == EXPECTED.keys()

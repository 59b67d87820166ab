"""Record what `ms-omni doctor` compares with: `python -m tests.reference.record_doctor CHECKPOINT`.

CHECKPOINT: written by `python -m tests.reference.checkpoints tiny CHECKPOINT` (in the environment with MindSpore). Writes
ms_omni/doctor/data/selfcheck.npz: per stage some values in float32, the root mean square of the whole, and by how much
bfloat16 changes the stage in the reference itself, relative to that.
"""

import sys
from pathlib import Path

from tests.reference import reference_model

import numpy as np  # isort: skip
import torch

from ms_omni.doctor.selfcheck import inputs, some

FILE = Path(__file__).resolve().parents[2] / "ms_omni" / "doctor" / "data" / "selfcheck.npz"


def stages(model, dtype):
    """{stage: numbers} as `ms_omni.doctor.selfcheck.run_stages` gives them."""
    thinker, talker = model.thinker, model.talker
    from_numpy = lambda array: torch.from_numpy(np.asarray(array))  # noqa: E731
    floats = lambda array: from_numpy(array).to(dtype)  # noqa: E731
    given = inputs(talker.config.text_config.hidden_size)
    (pixels, grid), (moving, grids), mel = given["image"], given["video"], given["audio"][0]
    (rows, positions), (hidden, first) = given["talker"], given["predictor"]
    embed = talker.get_input_embeddings()(from_numpy(first))
    predicted = talker.code_predictor.model(inputs_embeds=torch.cat([floats(hidden), embed], 1), use_cache=False)
    last = talker.model(inputs_embeds=floats(rows), position_ids=from_numpy(positions), use_cache=False).last_hidden_state
    return {
        "image": thinker.model.visual(floats(pixels), from_numpy(grid)).pooler_output,
        "video": thinker.model.visual(floats(moving), from_numpy(grids)).pooler_output,
        "audio": thinker.model.audio_tower(floats(mel), feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state,
        "text": thinker(input_ids=from_numpy(given["text"])).logits,
        "talker": talker.codec_head(last),
        "predictor": talker.code_predictor.lm_head[0](predicted.last_hidden_state[:, -1]),
        "code2wav": model.code2wav(from_numpy(given["code2wav"])),
    }


def main(folder):
    torch.set_grad_enabled(False)
    model = reference_model.load(folder)
    exact = {name: value.float().numpy() for name, value in stages(model, torch.float32).items()}
    rough = {name: value.float().numpy() for name, value in stages(model.to(torch.bfloat16), torch.bfloat16).items()}
    stored = {}
    for name, value in exact.items():
        scale = float(np.sqrt(np.mean(value**2)))
        stored[name] = some(value).astype(np.float32)
        stored[f"{name}.bfloat16"] = np.float32(np.sqrt(np.mean((rough[name] - value) ** 2)) / scale)
        print(f"{name:10s} {value.shape!s:18s} scale {scale:.3g}  bfloat16 {stored[f'{name}.bfloat16']:.2e}")
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **stored)
    print(f"wrote {FILE}, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])

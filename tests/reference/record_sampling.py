"""Record what transformers makes of logits: `python -m tests.reference.record_sampling`; see requirements.txt.

Writes data/sampling.npz: for every case of `sampling_cases.py` the processed scores `[steps, 3, V]`.
"""

from types import SimpleNamespace

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from tests.reference import sampling_cases
from tests.reference.store import DATA, Recorder


def processed(options: dict) -> np.ndarray:
    """Scores of every step, by the list of processors that `generate` builds."""
    prompt = sampling_cases.PROMPT
    config = GenerationConfig(**{"top_k": 0, "do_sample": True, **options})
    config.max_length = prompt + (config.max_new_tokens or 1024)
    config._eos_token_tensor = torch.tensor(sampling_cases.EOS)
    ids = torch.from_numpy(sampling_cases.texts())
    mask = torch.ones_like(ids[:, :prompt])
    mask[0, 0] = 0
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    model._merge_criteria_processor_list = lambda ours, theirs: ours
    steps = GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=prompt, logits_processor=[], model_kwargs={"attention_mask": mask}
    )
    rows = [steps(ids[:, : prompt + n], torch.from_numpy(x)) for n, x in enumerate(sampling_cases.logits())]
    return np.stack([row.numpy() for row in rows])


def main():
    """Writes the file."""
    record = Recorder()
    for name, options in sampling_cases.CASES.items():
        record.add(name, processed(options), limit=10**6, dtype=np.float32)
    record.save(DATA / "sampling.npz")


if __name__ == "__main__":
    main()

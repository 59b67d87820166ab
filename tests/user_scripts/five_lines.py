"""Five lines of a user's own."""

import sys

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor

model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(sys.argv[1])
processor = Qwen3OmniMoeProcessor.from_pretrained(sys.argv[1])
inputs = processor.apply_chat_template(
    [{"role": "user", "content": "What is 4 + 5?"}], tokenize=True, add_generation_prompt=True, return_dict=True
)
ids, audio = model.generate(**inputs)
print(
    processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0],
    (*audio.shape[:2], audio.size > 4800),
)

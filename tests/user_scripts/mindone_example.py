"""mindone's `omni_understanding.py` in one process (several: tests/parallel/mindone_script.py), in MindSpore's two modes."""

import argparse
import os
import sys
from functools import partial

import mindspore as ms
import numpy as np
import soundfile as sf
from mindspore.communication import GlobalComm

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info
from ms_omni.parallel import prepare_network


def generate(args):
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        args.model_name,
        mindspore_dtype=ms.bfloat16,
        attn_implementation="flash_attention_2",
        use_flash_attention_2=True,
    )
    shard_fn = partial(prepare_network, zero_stage=3, optimizer_parallel_group=GlobalComm.WORLD_COMM_GROUP)
    model.thinker = shard_fn(model.thinker)
    model.talker = shard_fn(model.talker)
    processor = Qwen3OmniMoeProcessor.from_pretrained(args.model_name, min_pixels=56 * 56, max_pixels=14 * 14 * 768)
    content = [{"type": "image", "image": args.image}, {"type": "audio", "audio": args.audio}]
    conversation = [{"role": "user", "content": [*content, {"type": "text", "text": args.prompt}]}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(conversation, use_audio_in_video=True)
    inputs = processor(
        text=text, audio=audios, images=images, videos=videos, return_tensors="np", padding=True, use_audio_in_video=True
    )
    for key, value in inputs.items():
        if isinstance(value, np.ndarray):
            inputs[key] = ms.tensor(value)
        if inputs[key].dtype == ms.int64:
            inputs[key] = inputs[key].to(ms.int32)
        elif inputs[key].dtype != ms.int32:
            inputs[key] = inputs[key].to(model.dtype)

    text_ids, audio = model.generate(
        **inputs,
        speaker="Ethan",
        thinker_return_dict_in_generate=True,
        use_audio_in_video=True,
        talker_do_sample=False,
    )
    text = processor.batch_decode(
        text_ids.sequences[:, inputs["input_ids"].shape[1] :],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    print(text)
    if audio is not None:
        sf.write("output.wav", audio.reshape(-1).asnumpy(), samplerate=24000)
        print(audio.asnumpy().dtype, sf.info("output.wav").frames > 4800)


if __name__ == "__main__":
    samples = os.path.join(sys.argv[1], "samples")
    parser = argparse.ArgumentParser()
    parser.add_argument("model_name")
    parser.add_argument("--prompt", default="What number do you hear?")
    parser.add_argument("--image", default=os.path.join(samples, "star.jpg"))
    parser.add_argument("--audio", default=os.path.join(samples, "digits.wav"))
    ms.set_context(mode=ms.GRAPH_MODE)  # a line of many tutorials; it changes nothing here
    generate(parser.parse_args())

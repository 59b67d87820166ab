"""mindone's example for two cards with its imports changed and nothing else; files instead of URLs, and fewer tokens.

msrun --worker_num=2 ... mindone_script.py --model_name DIR --image FILE --audio FILE
"""

import argparse
from functools import partial

import mindspore as ms
import numpy as np
import soundfile as sf
from mindspore.communication import GlobalComm

import ms_omni.parallel as dist
from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info
from ms_omni.parallel import prepare_network


def generate(args):
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        args.model_name, mindspore_dtype=ms.bfloat16, attn_implementation="flash_attention_2"
    )
    shard_fn = partial(prepare_network, zero_stage=3, optimizer_parallel_group=GlobalComm.WORLD_COMM_GROUP)
    if args.whole:
        model = shard_fn(model)
    else:
        model.thinker = shard_fn(model.thinker)
        model.talker = shard_fn(model.talker)

    processor = Qwen3OmniMoeProcessor.from_pretrained(args.model_name, min_pixels=56 * 56, max_pixels=14 * 14 * 768)
    content = [
        {"type": "image", "image": args.image},
        {"type": "audio", "audio": args.audio},
        {"type": "text", "text": args.prompt},
    ]
    conversation = [{"role": "user", "content": content}]
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
        thinker_max_new_tokens=4,
        talker_max_new_tokens=4,
    )
    answer = processor.batch_decode(
        text_ids.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    print("answer", text_ids.sequences[0, inputs["input_ids"].shape[1] :].tolist(), answer)
    if audio is not None:
        sf.write("output.wav", audio.reshape(-1).asnumpy(), samplerate=24000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", default="What can you see and hear? Answer in one short sentence.")
    parser.add_argument("--image", required=True)
    parser.add_argument("--audio", required=True)
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--whole", action="store_true", help="shard the model at once, as in mindone's README")

    dist.init_process_group(backend="hccl")
    ms.set_auto_parallel_context(parallel_mode="data_parallel")

    generate(parser.parse_args())

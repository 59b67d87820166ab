"""Shows the model a picture and a sound and prints its answer.

    python launch/omni_understanding.py --model_name examples/miniature
    ms-omni launch --cards 2 launch/omni_understanding.py --model_name examples/miniature

Several processes share the model, under `ms-omni launch` or msrun; rank 0 prints.
"""

import argparse
from pathlib import Path

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info
from ms_omni.parallel import start

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model_name", required=True, help="checkpoint folder")
    parser.add_argument("--image", default=str(EXAMPLES / "picture.jpg"), help="file or URL")
    parser.add_argument("--audio", default=str(EXAMPLES / "speech.wav"), help="file or URL")
    parser.add_argument("--prompt", default="What can you see and hear? Answer in one short sentence.")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    mesh = start()
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(args.model_name, enable_audio_output=False)
    processor = Qwen3OmniMoeProcessor.from_pretrained(args.model_name)

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

    text_ids, _ = model.generate(
        **inputs, return_audio=False, use_audio_in_video=True, thinker_max_new_tokens=args.max_new_tokens
    )
    if mesh.speaks:
        print(processor.batch_decode(text_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])


if __name__ == "__main__":
    main()

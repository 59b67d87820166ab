"""Shows the model a video with sound; prints its answer and writes the spoken one.

    python launch/omni_speech.py --model_name examples/miniature --output build/output.wav
    ms-omni launch --cards 2 launch/omni_speech.py --model_name examples/miniature --output build/output.wav

Several processes share the model, under `ms-omni launch` or msrun; rank 0 prints and writes.
"""

import argparse
from pathlib import Path

import soundfile

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info
from ms_omni.outputs import SPEECH_RATE_HZ
from ms_omni.parallel import start

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model_name", required=True, help="checkpoint folder")
    parser.add_argument("--video", default=str(EXAMPLES / "video.mp4"), help="file or URL")
    parser.add_argument("--prompt", default="What happens in this video? Answer in one short sentence.")
    parser.add_argument("--speaker", default="Ethan")
    parser.add_argument("--output", default="output.wav", help="WAV file to write")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    parser.add_argument("--talker_max_new_tokens", type=int, default=4096, help="limit of codec frames, 80 ms each")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    mesh = start()
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(args.model_name)
    processor = Qwen3OmniMoeProcessor.from_pretrained(args.model_name)

    content = [{"type": "video", "video": args.video}, {"type": "text", "text": args.prompt}]
    conversation = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    audios, images, videos, video_kwargs = process_mm_info(conversation, use_audio_in_video=True, return_video_kwargs=True)
    inputs = processor(
        text=text,
        audio=audios,
        images=images,
        videos=videos,
        return_tensors="np",
        padding=True,
        use_audio_in_video=True,
        **video_kwargs,
    )

    text_ids, audio = model.generate(
        **inputs,
        speaker=args.speaker,
        use_audio_in_video=True,
        thinker_return_dict_in_generate=True,
        thinker_max_new_tokens=args.max_new_tokens,
        talker_max_new_tokens=args.talker_max_new_tokens,
    )
    if not mesh.speaks:
        return
    answer = text_ids.sequences[:, inputs["input_ids"].shape[1] :]
    print(processor.batch_decode(answer, skip_special_tokens=True)[0])
    if audio.size:
        soundfile.write(args.output, audio.reshape(-1), samplerate=SPEECH_RATE_HZ)
        print(f"spoken answer: {args.output}")


if __name__ == "__main__":
    main()

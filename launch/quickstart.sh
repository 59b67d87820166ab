#!/usr/bin/env bash
# From a fresh clone to answers: installs ms_omni into .venv and runs `ms-omni demo` on the miniature checkpoint of this
# repository; options go to it. With MS_OMNI_MODEL=DIR that checkpoint is asked about a picture, a sound and a video, and
# options go to `ms-omni generate`. Downloads packages, but no model.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment ""

if [ -z "${MS_OMNI_MODEL:-}" ]; then
  exec ms-omni demo --out "$root/build/demo" "$@"
fi
mkdir -p "$root/build"
ms-omni generate --model "$MS_OMNI_MODEL" --image "$root/examples/picture.jpg" --audio "$root/examples/speech.wav" \
  --video "$root/examples/video.mp4" --use-audio-in-video --max-new-tokens 24 --talker-max-new-tokens 32 \
  --speech "$root/build/answer.wav" "$@" "What do you see and hear?"

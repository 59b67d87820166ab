#!/usr/bin/env bash
# From a fresh clone to an answer: installs ms_omni into .venv, writes a tiny checkpoint, and asks it about a picture, a
# sound and a video with sound. Options are handed to `ms-omni generate`. Downloads packages, but no model.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment ""

model="${MS_OMNI_MODEL:-$root/build/tiny}"
if [ ! -e "$model/config.json" ]; then
  ms-omni tiny "$model"
fi
mkdir -p "$root/build"
ms-omni generate --model "$model" --image "$root/examples/picture.jpg" --audio "$root/examples/speech.wav" \
  --video "$root/examples/video.mp4" --use-audio-in-video --max-new-tokens 24 --talker-max-new-tokens 32 \
  --speech "$root/build/answer.wav" "$@" "What do you see and hear?"

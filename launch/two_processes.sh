#!/usr/bin/env bash
# Two processes on CPU share the miniature checkpoint: what runs on several cards, without one. Options go to `ms-omni generate`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment ""

model="${MS_OMNI_MODEL:-$root/examples/miniature}"
exec ms-omni launch --cards 2 ${MS_OMNI_LOGS:+--log-dir "$MS_OMNI_LOGS"} generate --model "$model" --max-new-tokens 16 \
  "$@" "What do you see?"

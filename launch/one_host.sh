#!/usr/bin/env bash
# One machine with N cards:  bash launch/one_host.sh N COMMAND...
# COMMAND is `generate` or `say` with its options, or a script such as launch/omni_speech.py with its own.
# MS_OMNI_LOGS names a folder for the logs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment ""

[ $# -ge 2 ] || { echo "usage: $0 N COMMAND..." >&2; exit 2; }
cards="$1"
shift
exec ms-omni launch --cards "$cards" ${MS_OMNI_LOGS:+--log-dir "$MS_OMNI_LOGS"} "$@"

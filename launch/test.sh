#!/usr/bin/env bash
# Installs ms_omni with its test tools into .venv and runs the tests. Options are handed to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment "[dev,parallel]"

cd "$root"
exec python -m pytest "$@"

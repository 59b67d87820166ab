# Sourced by the launch scripts: makes (once) and activates a virtual environment with ms_omni in it.
# MS_OMNI_VENV chooses the folder (default: .venv in the repository), PYTHON the interpreter (3.10 to 3.12).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${MS_OMNI_VENV:-$root/.venv}"

find_python() {
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.10 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "ms_omni needs Python 3.10 to 3.12 and found none; install one, or set PYTHON=/path/to/python3.11" >&2
  return 1
}

# use_environment EXTRAS: EXTRAS is "" or an extras list such as "[dev]".
use_environment() {
  local stamp="$venv/.ms_omni-installed$1"
  if [ ! -x "$venv/bin/python" ]; then
    "$(find_python)" -m venv "$venv"
  fi
  if [ ! -e "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ]; then
    # A person sees what is downloaded; a log gets two lines.
    local quiet=--quiet
    [ -t 2 ] && quiet=""
    echo "installing ms_omni$1 and what it needs (1 GB to download) into $venv, which takes some minutes ..." >&2
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check -e "$root$1" >&2
    echo "installed" >&2
    touch "$stamp"
  fi
  export PATH="$venv/bin:$PATH"
}

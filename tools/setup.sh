#!/usr/bin/env bash
# Make ./.venv with everything the project needs; quick when nothing has changed. Log: .venv/setup.log
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/setup.stamp
want=$(cat pyproject.toml tools/setup.sh | sha256sum)
[ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ] || exit 0

if ! python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "setup: Python 3.10 or newer is needed" >&2; exit 2; }
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "setup: python3-venv is missing; type: sudo apt-get install python3-venv" >&2; exit 2; }
  echo "setup: installing python3-venv"
  { apt-get update && apt-get install -y --no-install-recommends python3-venv; } >/tmp/toolkit-apt.$$ 2>&1 || { cat /tmp/toolkit-apt.$$ >&2; exit 2; }
fi
echo "setup: installing into .venv (some minutes the first time; log: .venv/setup.log)"
[ -x .venv/bin/python ] || python3 -m venv .venv
log=.venv/setup.log
pip=(.venv/bin/python -m pip install --disable-pip-version-check)
fail() { tail -n 20 "$log" >&2; echo "setup: failed, see $log" >&2; exit 1; }

if ! .venv/bin/python -c 'import torch' 2>/dev/null && [ ! -e /proc/driver/nvidia/version ]; then
  # No NVIDIA driver: the CPU build, or pip would fetch gigabytes of CUDA libraries.
  "${pip[@]}" 'torch==2.13.0+cpu' >"$log" 2>&1 ||
    "${pip[@]}" 'torch>=2.6,<2.14' --index-url https://download.pytorch.org/whl/cpu >>"$log" 2>&1 || fail
fi
"${pip[@]}" -e '.[dev]' >>"$log" 2>&1 || fail
echo "$want" >"$stamp"
echo "setup: done"

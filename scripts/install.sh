#!/usr/bin/env bash
# Make .venv (with uv where installed, else pip) and install the project and its tools into it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
echo "installed in $VENV; the commands are $VENV/bin/clips, $VENV/bin/llava-bridge and $VENV/bin/clips-bench"

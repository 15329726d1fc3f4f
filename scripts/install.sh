#!/usr/bin/env bash
# Make .venv and install the suite into it; make test, lint, docs and audit add the tools that they need.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
echo "installed in $VENV; the commands are $VENV/bin/clips, $VENV/bin/llava-bridge and $VENV/bin/clips-bench"

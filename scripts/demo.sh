#!/usr/bin/env bash
# Run or resume the demo study: train encoders, plug them into LLaVA, evaluate all, print the answer.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
exec "$VENV/bin/clips-bench" study run scripts/studies/demo.yaml "$@"

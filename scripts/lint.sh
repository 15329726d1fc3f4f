#!/usr/bin/env bash
# Check style (ruff), types (mypy) and the direction of imports between the packages (import-linter).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv dev
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
"$VENV/bin/mypy" --no-namespace-packages scripts # scripts/deepspeed is not the package
"$VENV/bin/lint-imports"

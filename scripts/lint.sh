#!/usr/bin/env bash
# Style (ruff), types (mypy) and the one-way rule between the packages (import-linter).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
"$VENV/bin/lint-imports"

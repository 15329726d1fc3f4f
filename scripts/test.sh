#!/usr/bin/env bash
# Run the tests, without those marked slow; arguments go to pytest (`-m slow` runs those, `-m ""` all).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$VENV/bin/python" -m pytest -n "${TEST_WORKERS:-auto}" --dist loadfile -m "not slow" "$@"

#!/usr/bin/env bash
# Run the tests that are not marked slow; arguments go to pytest (`-m slow` runs the others, `-m ""` all).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv dev
workers=auto
# Tests wait for child processes a part of their time: use one worker more than cores, if memory has 4 GB for each.
if [[ -r /proc/meminfo ]]; then
    cores=$(getconf _NPROCESSORS_ONLN)
    room=$(awk '/MemAvailable/ { print int($2 / 4000000) }' /proc/meminfo)
    if ((room > cores)); then workers=$((cores + 1)); fi
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$VENV/bin/python" -m pytest -n "${TEST_WORKERS:-$workers}" --dist loadfile -m "not slow" "$@"

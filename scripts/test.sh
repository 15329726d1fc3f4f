#!/usr/bin/env bash
# Run the tests, without those marked slow; arguments go to pytest (`-m slow` runs those, `-m ""` all).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
workers=auto
# Quick tests wait a fifth of the time for processes that they start: one worker more than cores, of 4 GB each.
if [[ $# == 0 && -r /proc/meminfo ]]; then
    cores=$(getconf _NPROCESSORS_ONLN)
    room=$(awk '/MemAvailable/ { print int($2 / 4000000) }' /proc/meminfo)
    if ((room > cores)); then workers=$((cores + 1)); fi
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$VENV/bin/python" -m pytest -n "${TEST_WORKERS:-$workers}" --dist loadfile -m "not slow" "$@"

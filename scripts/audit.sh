#!/usr/bin/env bash
# Print licenses and known vulnerabilities of the suite's dependencies; arguments go to audit_dependencies.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
exec "$VENV/bin/python" scripts/audit_dependencies.py "$@"

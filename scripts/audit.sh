#!/usr/bin/env bash
# Licenses and known vulnerabilities of everything installed for the suite; arguments go to audit_dependencies.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv
exec "$VENV/bin/python" scripts/audit_dependencies.py "$@"

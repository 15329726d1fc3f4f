#!/usr/bin/env bash
# Run the measurements that need a GPU, on a machine that has torch and transformers but no network.
#
#     bash scripts/gpu/run.sh --out DIR [--kit DIR] [--part NAME …] [--seconds N] [--device cpu --small] [--list]
#
# See scripts/gpu/run.py; scripts/gpu/kit.sh makes the kit.
exec "${PYTHON:-python3}" -u "$(dirname "${BASH_SOURCE[0]}")/run.py" "$@"

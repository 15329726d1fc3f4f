# Sourced by the scripts in this folder: changes to the project's root, and defines an up-to-date environment in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}

# Installs only when pyproject.toml or constraints.txt changed since the last installation.
ensure_venv() {
    local wanted installed="$VENV/.installed"
    if [ -L "$VENV" ]; then return; fi # the environment of another checkout
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ -f "$installed" ] && [ "$(cat "$installed")" = "$wanted" ]; then return; fi
    if command -v uv >/dev/null 2>&1; then
        "$VENV/bin/python" -c "" 2>/dev/null || uv venv --quiet --allow-existing --python ">=3.11" "$VENV"
        echo "installing into $VENV with uv (several GB the first time) ..." >&2
        VIRTUAL_ENV="$VENV" uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable ".[dev]"
    else
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || make_venv_without_uv
        echo "installing into $VENV with pip (several GB the first time, some minutes) ..." >&2
        "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
    fi
    echo "$wanted" >"$installed"
}

make_venv_without_uv() {
    python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null ||
        { echo "python3: expected Python 3.11 or later, found $(python3 --version 2>&1)" >&2; exit 2; }
    python3 -m venv "$VENV" ||
        { echo "python3 -m venv failed; Debian and Ubuntu have it in the package python3-venv" >&2; exit 2; }
}

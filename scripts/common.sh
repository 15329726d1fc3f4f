# Sourced by the scripts in this folder: changes to the project's root, and defines an up-to-date environment in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
# Containers often set it: each of the hundreds of processes of tests and demo would compile all its modules again.
unset PYTHONDONTWRITEBYTECODE

# ensure_venv [dev]: the suite in .venv, with the tools of its developers if asked for. Installs only what is missing
# since pyproject.toml or constraints.txt changed.
ensure_venv() {
    local wanted what=. installed="$VENV/.installed"
    if [ -L "$VENV" ]; then return; fi # the environment of another checkout
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if grep -qsx "$wanted ${1:-.*}" "$installed"; then return; fi
    # What was installed for the developers stays theirs when the suite changes.
    if [ "${1:-}" = dev ] || grep -qs " dev$" "$installed"; then what=".[dev]"; fi
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV/bin/python" -m ensurepip >/dev/null 2>&1 || make_venv
    echo "installing into $VENV (several GB the first time, nearly all of it PyTorch with CUDA) ..." >&2
    if ! install_with_uv "$what"; then
        echo "installing with pip instead, which takes some minutes ..." >&2
        "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --editable "$what"
    fi
    echo "$wanted ${what//[^dev]/}" >"$installed"
}

make_venv() {
    python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null ||
        { echo "python3: expected Python 3.11 or later, found $(python3 --version 2>&1)" >&2; exit 2; }
    python3 -m venv "$VENV" ||
        { echo "python3 -m venv failed; Debian and Ubuntu have it in the package python3-venv" >&2; exit 2; }
}

# uv downloads and unpacks in parallel. It does not read pip's configuration, so it is given pip's indexes, to be
# searched as pip does.
install_with_uv() {
    local pip=("$VENV/bin/python" -m pip) index extra
    "${pip[@]}" install --quiet --constraint constraints.txt uv || return
    index=${PIP_INDEX_URL:-$("${pip[@]}" config get global.index-url 2>/dev/null || true)}
    extra=${PIP_EXTRA_INDEX_URL:-$("${pip[@]}" config get global.extra-index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
    if [ -n "$extra" ]; then export UV_INDEX=${UV_INDEX:-${extra//$'\n'/ }}; fi
    VIRTUAL_ENV="$VENV" UV_INDEX_STRATEGY=unsafe-best-match \
        "$VENV/bin/uv" pip install --quiet --constraint constraints.txt --editable "$1"
}

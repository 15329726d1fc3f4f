#!/usr/bin/env bash
# Build the documentation into build/site, from docs/ and from docstrings; a warning is an error.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv dev
export NO_MKDOCS_2_WARNING=1  # an advertisement of the theme
"$VENV/bin/mkdocs" build --quiet --strict "$@"
echo "open build/site/index.html"

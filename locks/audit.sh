#!/bin/sh
# Look the locked packages up in the published security advisories: `sh locks/audit.sh`.
# Exit status: 0 no advisory; 1 some, or pip-audit failed; 3 the advisories could not be had: nothing was looked up.
set -eu
cd "$(dirname "$0")/.."

audit() { "${FLARE_PYTHON:-.venv/bin/python}" -m pip_audit --progress-spinner off --disable-pip "$@"; }

# pip-audit finds "no known vulnerabilities" where a package is not found: see it find those of an old one first.
if ! echo "jinja2==2.4.1" | audit --no-deps -r /dev/stdin 2>/dev/null | grep -qE 'PYSEC-|GHSA-|CVE-'; then
  echo "locks/audit.sh: SKIPPED: the advisories cannot be had from here; no package was looked up" >&2
  exit 3
fi
for lock in locks/torch-*[0-9].txt; do  # the CPU build's packages are among those of the CUDA build
  echo "$lock"
  audit --strict --require-hashes -r "$lock"
done

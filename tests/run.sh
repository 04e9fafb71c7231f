#!/bin/sh
# The whole suite, from a clean clone: `sh tests/run.sh`. Arguments go to pytest: `sh tests/run.sh -k cases -n 8`.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

if [ -z "${FLARE_PYTHON:-}" ]; then
  sh "$root/predict.sh" --help >/dev/null  # makes .venv with what the program needs
  FLARE_PYTHON=$root/.venv/bin/python
  installed=$root/.venv/requirements-dev.txt  # a copy of what is installed, made last
  # New packages of the program make predict.sh's own copy newer, and may have replaced what the tests need.
  if ! cmp -s "$root/requirements-dev.txt" "$installed" || [ "$root/.venv/requirements.txt" -nt "$installed" ]; then
    echo "tests/run.sh: installing the packages of requirements-dev.txt into .venv" >&2
    if ! "$FLARE_PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-dev.txt" >&2; then
      echo "tests/run.sh: the packages could not be installed, see above" >&2
      exit 2
    fi
    cp "$root/requirements-dev.txt" "$installed"
  fi
fi

cd "$root"
# Two workers of one thread each: as quick as two cores allow, and in 4 GB. A file's tests stay together: they share
# what they make, and containers, of one engine and one name, are started by one worker.
OMP_NUM_THREADS=1 exec "$FLARE_PYTHON" -m pytest -n 2 --dist loadfile "$@"

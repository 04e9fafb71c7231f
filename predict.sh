#!/bin/sh
# Segment abdominal CT: `sh predict.sh --help`. In the image the packages are there; elsewhere the first run
# makes .venv and installs them, and a run with no arguments segments the shipped example.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)  # callers may stand anywhere (Apptainer changes the directory)

python=${FLARE_PYTHON:-}  # set in the image
if [ -z "$python" ]; then
  python=$here/.venv/bin/python
  installed=$here/.venv/requirements.txt  # a copy of what is installed, made last
  if ! cmp -s "$here/requirements.txt" "$installed"; then
    for base in python3 python3.14 python3.13 python3.12 python3.11 python3.10 none; do
      "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
    done
    if [ "$base" = none ]; then
      echo "predict.sh: Python 3.10 or newer is needed (Debian, Ubuntu: apt install python3 python3-venv)" >&2
      exit 2
    fi
    if ! "$base" -c 'import venv, ensurepip' 2>/dev/null; then
      echo "predict.sh: $base has no venv module (Debian, Ubuntu: apt install python3-venv)" >&2
      exit 2
    fi
    mkdir -p "$here/.venv" || exit 2
    exec 9>"$here/.venv/lock"
    # Of two first runs at one moment the second waits. The lock is the open file's: it ends with it, however it ends.
    # Where the file system has no locks, the second does not wait.
    "$base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || :
    if ! cmp -s "$here/requirements.txt" "$installed"; then
      echo "predict.sh: first run: installing the packages of requirements.txt into .venv" >&2
      if ! "$base" -m venv "$here/.venv" >&2 ||
        ! "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2; then
        echo "predict.sh: the packages could not be installed, see above" >&2
        exit 2
      fi
      cp "$here/requirements.txt" "$installed"
    fi
    exec 9>&-
  fi
  if ! "$python" -c 'import psutil' 2>/dev/null; then # the system's Python was replaced, or this machine has another
    echo "predict.sh: $here/.venv does not work here: remove it and run again" >&2
    exit 2
  fi
  [ $# -gt 0 ] || set -- --inputs "$here/examples" --outputs "$here/outputs" --preview
fi
# glibc would give memory back to the kernel after each step and fetch it again, page by page (benchmarks/README.md).
kept=1073741824
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=$kept:glibc.malloc.trim_threshold=$kept:glibc.malloc.top_pad=67108864}"
# `python -m app`, but a folder named `app` where the caller stands is not taken for ours (Python 3.11 has -P for it).
PYTHONPATH="$here" exec "$python" -c '
import sys
sys.path = [folder for folder in sys.path if folder]
import runpy
runpy.run_module("app", run_name="__main__", alter_sys=True)' "$@"

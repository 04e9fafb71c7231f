#!/bin/sh
# Make the image's locks from requirements.txt, all or the named ones: `sh locks/compile.sh 2.10.0`. Needs uv.
#
# A lock holds every package that Python 3.11 on x86-64 Linux gets with that torch, and the SHA-256 of its files. What
# is locked stays as it is while requirements.txt allows it: remove a lock to renew it. The CPU build is not on PyPI: uv
# asks PyTorch's own index for it, unless UV_FIND_LINKS names a folder with its wheel (`===`: which is not 2.13.0 then).
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 2.13.0 2.13.0+cpu 2.10.0 2.7.1  # docs/images.md
for version; do
  case $version${UV_FIND_LINKS:-} in *+cpu) index="--torch-backend cpu" ;; *) index= ;; esac
  sed "s/^torch==.*/torch===$version/" requirements.txt |
    uv pip compile --quiet --no-config --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
      --no-annotate $index --custom-compile-command "sh locks/compile.sh $version" --output-file "locks/torch-$version.txt" -
done

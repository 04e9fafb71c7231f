#!/bin/sh
# The five steps of docs/visit.md on phantoms and the CPU, in three minutes: what fails here would have failed there.
#     sh training/rehearse.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
folder=${1:-$(mktemp -d)}
python=${PYTHON:-python}
run() {
    echo "== $*"
    "$python" -m "$@"
}

run training.phantom "$folder/phantom" --cases 4 --size 64
run training.prepare --images "$folder/phantom/images" --labels "$folder/phantom/labels" --cases 'phantom_000[0-2]' \
    --store "$folder/home/store" --workers 1
run training.prepare --images "$folder/phantom/images" --cases phantom_0003 --store "$folder/home/store" --workers 1

run training.carry store "$folder/home/store" "$folder/outward" --piece-mib 0.5
run training.carry unpack "$folder/outward" "$folder/there/store"
echo '[["phantom_0002"]]' >"$folder/there/folds.json"
BRANCH_FOR='--train-s 5' ARM_FOR='--train-s 5' SHIP_FOR='--train-s 5' \
    sh training/cps.sh "$folder/there/store" "$folder/there/runs" --resident --device cpu --folds "$folder/there/folds.json" \
    --checkpoint-every-s 5 --crop-px 64 --labelled-per-batch 4 --unlabelled-per-batch 4
run training.carry checkpoint "$folder/there/runs/ship/checkpoint.pt" "$folder/homeward" --piece-mib 15
run evaluation.tables --results "$folder/there/runs"
run benchmarks --device cpu --minutes 5 --results "$folder/there/results"
run training.carry weights "$folder/homeward" "$folder/home/weights.pt"
run app --inputs "$folder/phantom/images" --outputs "$folder/home/masks" --weights "$folder/home/weights.pt" --device cpu

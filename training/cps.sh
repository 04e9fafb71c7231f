#!/bin/sh
# Cross pseudo supervision from two networks, and what it adds:
#     sh training/cps.sh STORE RUNS [flags of training.train, for every run]
# 1. RUNS/first, RUNS/second: two branches from two Kaiming seeds, on labels alone, without the patients of fold 0.
# 2. RUNS/table3.json: from these two the arms of training.table3, scored on fold 0.
# 3. RUNS/ship: cross pseudo supervision on all patients, from the shipped weights and the second branch.
# How long: BRANCH_FOR, ARM_FOR and SHIP_FOR, as flags (--epochs 46, --train-s 60). SEEDS of the arms: "0 1 2". FIRST is a
# branch that is there already. Stopped, the same command goes on.
set -eu
store=$1 runs=$2
shift 2
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
first=${FIRST:-$runs/first/checkpoint.pt} second=$runs/second/checkpoint.pt
shipped=${SHIPPED:-weights/deeplabv3plus_resnet18.pt}
set -- @training/recipe.args --validate-every-epochs 1e9 "$@" # at the end of each run alone

branch() {
    # shellcheck disable=SC2086 # a length is a flag and its value
    "$python" -m training.train "$@" --store "$store" --fold 0 --branches 1 --lambda 0 ${BRANCH_FOR:---epochs 46}
}

[ -n "${FIRST:-}" ] || branch "$@" --seed 0 --out "$runs/first"
branch "$@" --seed 1 --out "$runs/second"
# shellcheck disable=SC2086
"$python" -m training.table3 --store "$store" --runs "$runs" --seeds ${SEEDS:-0} -o "$runs/table3.json" \
    -- "$@" --init "$first,$second" ${ARM_FOR:---epochs 13}
# shellcheck disable=SC2086
"$python" -m training.train "$@" --store "$store" --out "$runs/ship" --init "$shipped,$second" ${SHIP_FOR:---epochs 13}

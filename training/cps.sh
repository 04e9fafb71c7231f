#!/bin/sh
# Cross pseudo supervision from two networks, and what it adds; from the root of this tree:
#     sh training/cps.sh STORE RUNS [flags of training.train, for every run]
# 1. RUNS/first, RUNS/second: two branches from two Kaiming seeds, on labels alone, without the patients of fold 0.
# 2. RUNS/table3.json: from these two the arms of training.table3, scored on fold 0.
# 3. RUNS/ship: cross pseudo supervision on all patients, from the shipped weights and the second branch.
# Stopped, the same command goes on; other branches or lengths want another RUNS.
set -eu
store=$1 runs=$2
shift 2
python=${PYTHON:-python}
branch_for=${BRANCH_FOR:---epochs 46} # how long; or --train-s 60
arm_for=${ARM_FOR:---epochs 13}
ship_for=${SHIP_FOR:---epochs 13}
seeds=${SEEDS:-0} # of the arms, "0 1 2"; all start from the same two branches
first=${FIRST:-$runs/first/checkpoint.pt} second=${SECOND:-$runs/second/checkpoint.pt} # those that are there already
shipped=${SHIPPED:-weights/deeplabv3plus_resnet18.pt}
set -- @training/recipe.args --validate-every-epochs 1e9 "$@" # at the end of each run alone

# shellcheck disable=SC2086 # a length is a flag and its value
branch() {
    "$python" -m training.train "$@" --store "$store" --fold 0 --branches 1 --lambda 0 $branch_for
}

[ -n "${FIRST:-}" ] || branch "$@" --seed 0 --out "$runs/first"
[ -n "${SECOND:-}" ] || branch "$@" --seed 1 --out "$runs/second"
# shellcheck disable=SC2086
"$python" -m training.table3 --store "$store" --runs "$runs" --seeds $seeds -o "$runs/table3.json" \
    -- "$@" --init "$first,$second" $arm_for
# shellcheck disable=SC2086
"$python" -m training.train "$@" --store "$store" --out "$runs/ship" --init "$shipped,$second" $ship_for

#!/bin/sh
# Slice store of open CT (weights/MODEL_CARD.md names the collections of the shipped weights):
#     sh training/prepare_open_ct.sh CT_DIR STORE [further options of training.prepare]
set -eu
ct=$1 store=$2
shift 2

prepare() {
    "${PYTHON:-python}" -m training.prepare --store "$store" "$@"
}

# Whole BTCV scans: no duodenum in the label maps, HU cut off at 275.
prepare --images "$ct/labelled/images" --labels "$ct/labelled/labels" --cases 'btcv*' \
    --annotated 1-11,13 --saturated-hu 275 "$@"
# Single slices of these and other BTCV patients, not cut off.
prepare --images "$ct/sparse/images" --labels "$ct/sparse/labels" --annotated 1-11,13 --suffix _slices "$@"
# TotalSegmentator: a whole abdomen at 3 mm, whose esophagus is out of view and so counts as annotated; 4 cm of another.
prepare --images "$ct/labelled/images" --labels "$ct/labelled/labels" --cases totalseg_example \
    --annotated 1-13 --spacing-mm 0.5,0.98 "$@"
prepare --images "$ct/labelled/images" --labels "$ct/labelled/labels" --cases totalseg_dicom_slab \
    --annotated 1,3-7,11 "$@"
# Unlabelled; tcga_lihc_a3kf_art is the shipped example and never trained on.
prepare --images "$ct/unlabelled/images" --cases 'acrin*' 'cptac*' 'lidc*' "$@"

# Heads, thighs and phantoms for quality assurance, whose label maps are all background.
prepare --images "$ct/negative/images" --labels "$ct/negative/labels" --annotated 1-13 "$@"
phantoms=$(mktemp -d)
trap 'rm -r "$phantoms"' EXIT
"${PYTHON:-python}" -m training.phantom "$phantoms" --quality --cases 6 --size 448
prepare --images "$phantoms/images" --labels "$phantoms/labels" --annotated 1-13 "$@"

# Not in the store of the shipped weights: more unlabelled scans.
prepare --images "$ct/unlabelled/images" --cases 'crlm*' 'nsclc*' 'midrc*' 'cmb*' 'tcga_ay*' "$@"

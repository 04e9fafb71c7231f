"""Plausible volumes: every organ has a published range, and few organs that doctors drew are marked."""

import re

import pytest

from app.labels import ORGANS
from app.plausible import REFERENCES, mark, plausible_ml
from evaluation.report.case import report_case
from evaluation.report.run import CaseRecord
from tests.nifti_files import CT_DIR


def test_every_organ_has_a_range_and_a_source():
    assert set(REFERENCES) == {organ.label for organ in ORGANS}
    for reference in REFERENCES.values():
        assert 0 <= reference.low < reference.high and re.search(r"\d{4}|Oncol", reference.source) and reference.basis


def test_marks():
    low, high = plausible_ml(1, 0)
    assert (low, high) == (412.25, 3400)  # half and twice of 824.5 to 1700 ml
    assert [mark(1, ml, 0, False) for ml in (0, 412, 413, 3400, 3401)] == ["absent", "small", "", "", "large"]
    assert mark(1, 412, 0, cut=True) == ""
    assert plausible_ml(5, 200)[1] == pytest.approx(2 * 4.37 * 20)  # a tube: 200 mm of aorta


@pytest.mark.skipif(not (CT_DIR / "labelled").is_dir(), reason="no real scans: set FLARE22_CT_DIR")
def test_real_organs_are_plausible():
    """Of the organs that doctors drew in whole scans, few may be marked; the spleen of 3 l must be."""
    marks = {}
    for path in sorted((CT_DIR / "labelled" / "labels").glob("btcv*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        record = CaseRecord(name, "done", None, (), {}, ct=None, mask=path)
        volumes = report_case(record, None, (), pictures=False).volumes
        marks |= {(name, label): volume.mark for label, volume in volumes.items() if label != 12}
    assert marks["btcv0009", 3] == "large" and marks["btcv0023", 9] == "absent"
    assert sum(map(bool, marks.values())) < 0.05 * len(marks), {key: word for key, word in marks.items() if word}

"""Wrong voxels by kind: against a slow version, an example by hand, and the command line."""

import json
import math
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.labels import ORGANS
from evaluation.errors import main
from evaluation.scoring import TOLERANCES_MM
from evaluation.tables.__main__ import make
from evaluation.wrong_voxels import KINDS, wrong_voxels
from tests.label_maps import AFFINE, body, save
from tests.test_tables import cells

NAMES = ["background", *(organ.abbreviation for organ in ORGANS)]


def slow_errors(mask, truth, label, spacing_mm, tolerance_mm):
    """Voxel by voxel, as the words say it. Returns {("missed" or "extra", kind, z, label of the other map): voxels}."""
    _, y_mm, x_mm = spacing_mm
    counts = Counter()
    for z, y, x in zip(*np.where((mask == label) != (truth == label)), strict=True):
        what, other = ("missed", mask) if truth[z, y, x] == label else ("extra", truth)
        slices = [k for k in range(len(other)) if label in other[k]]
        places = zip(*np.where(other[z] == label), strict=True)
        if not slices or not slices[0] <= z <= slices[-1]:
            kind = "beyond_ends"
        elif any(math.hypot((b - y) * y_mm, (a - x) * x_mm) <= tolerance_mm for b, a in places):
            kind = "at_edge"
        else:
            kind = "elsewhere"
        counts[what, kind, int(z), int(other[z, y, x])] += 1
    return counts


def total(counts, *key):
    return sum(n for full, n in counts.items() if all(part in (None, of) for part, of in zip(key, full, strict=True)))


LABELS = arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(6), st.just(7)), elements=st.sampled_from([0, 0, 2, 3]))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.data(), st.sampled_from([1.0, 1.5, 2.0, 3.25]))
def test_every_wrong_voxel_has_one_kind_that_of_a_slow_version(truth, data, tolerance_mm):
    mask = data.draw(arrays(np.uint8, truth.shape, elements=st.sampled_from([0, 0, 0, 2, 3])))
    spacing_mm = (5.0, 0.75, 0.5)
    wrong = wrong_voxels(mask, truth, 2, spacing_mm, tolerance_mm)
    expected = slow_errors(mask, truth, 2, spacing_mm, tolerance_mm)
    for what, counts, partners in (
        ("missed", wrong.missed, wrong.given_to),
        ("extra", wrong.extra, wrong.taken_from),
    ):
        by_slice = [[total(expected, what, kind, z, None) for kind in KINDS] for z in range(len(truth))]
        np.testing.assert_array_equal(counts, by_slice)
        np.testing.assert_array_equal(partners, [total(expected, what, "elsewhere", None, n) for n in range(14)])
    assert wrong.annotated == np.count_nonzero(truth == 2)
    assert wrong.missed.sum() == np.count_nonzero((truth == 2) & (mask != 2))
    assert wrong.extra.sum() == np.count_nonzero((truth != 2) & (mask == 2))


@pytest.mark.parametrize(("tolerance_mm", "edge"), [(0.3, 3), (0.29, 2)])
def test_the_tolerance_itself_is_still_the_edge(tolerance_mm, edge):
    """0.1 mm times three is no 0.3 in binary."""
    truth, mask = np.zeros((2, 1, 1, 8), np.uint8)
    truth[..., :6], mask[..., 0] = 1, 1
    assert wrong_voxels(mask, truth, 1, (1, 0.1, 0.1), tolerance_mm).missed.tolist() == [[0, edge, 5 - edge]]


# --- the command ---


@pytest.fixture
def folders(tmp_path):
    """Voxels of 2 mm, 8 in 64 mm3. Case a: the right kidney, (x, y, z), by hand; case b: all organs, a little off."""
    truth, mask = np.zeros((2, 10, 10, 8), np.uint8)
    truth[:, 2:4, 1:5] = 2  # 4 slices of 20 voxels
    mask[:, 2:4, 2:6] = 2  # misses slice 1, goes on to slice 5
    mask[4:, 2:4, 3] = 0  # 12 missed: one column at the edge (tolerance 3 mm), 5 elsewhere
    mask[6:9, 2:4, 3] = 1  # 6 of these 10 are given to the liver
    mask[0:2, 8, 4] = 2  # far away: 2 extra
    truth[0, 8, 4] = 6  # one of them IVC
    two_mm = np.diag([2, 2, 2, 1])
    save(tmp_path / "labels" / "a.nii.gz", truth, two_mm)
    save(tmp_path / "masks" / "a.nii.gz", mask, two_mm)
    save(tmp_path / "labels" / "b.nii.gz", body(0))
    save(tmp_path / "masks" / "b.nii.gz", np.roll(body(0), (1, 0, 2), (0, 1, 2)))
    (tmp_path / "organs.tsv").write_text("case\tannotated\na\tRK,IVC\nb\t1-11,13\n")
    return tmp_path


def run(folder, *options):
    places = ("--labels", folder / "labels", "--masks", folder / "masks", "-o", folder / "results" / "errors.json")
    return main([str(option) for option in (*places, *options)])


def result_of(folder):
    return json.loads((folder / "results" / "errors.json").read_text())


def test_kinds_partners_and_worst_slices_by_hand(folders, capsys):
    (folders / "masks" / "b.nii.gz").unlink()
    assert run(folders, "--organs", "RK") == 0
    result = result_of(folders)
    kidney = result["organs"]["RK"]
    assert list(result["organs"]) == list(result["cases"]["a"]["organs"]) == ["RK"]
    assert kidney["annotated_ml"] == pytest.approx(80 * 0.008) and (kidney["cases"], kidney["edge_mm"]) == (1, 3)
    voxels = {"beyond_ends": 20, "at_edge": 2, "elsewhere": 10}
    assert kidney["missed_share"] == pytest.approx({kind: n / 80 for kind, n in voxels.items()})
    assert kidney["extra_share"] == pytest.approx({"beyond_ends": 20 / 80, "at_edge": 0, "elsewhere": 2 / 80})
    assert kidney["given_to_share"] == pytest.approx({"Liver": 6 / 80, "background": 4 / 80})
    assert kidney["taken_from_share"] == pytest.approx({"background": 1 / 80, "IVC": 1 / 80})
    worst = [(one["case"], one["z"], one["missed_ml"], one["extra_ml"]) for one in kidney["worst_slices"]]
    assert worst == [
        ("a", 1, pytest.approx(0.16), 0),
        ("a", 5, 0, pytest.approx(0.16)),
        ("a", 3, pytest.approx(0.096), 0),
        ("a", 4, 0, pytest.approx(0.016)),
    ]
    said = capsys.readouterr()
    assert said.err == "warning: label maps without a mask, not counted: b.nii.gz\n"
    assert "| RK | 1 | 25.0 | 2.5 | 12.5 | Liver 7.5, background 5.0 |" in said.out


def test_several_cases_are_added_up_over_those_that_annotate_the_organ(folders):
    for organs, annotated in (("RK,IVC", "a"), ("1-11,13", "b")):
        for name in "ab":
            (folders / "masks" / f"{name}.nii.gz").rename(folders / f"{name}.nii.gz")
        (folders / f"{annotated}.nii.gz").rename(folders / "masks" / f"{annotated}.nii.gz")
        assert run(folders, "--organs", organs) == 0
        (folders / "results" / "errors.json").rename(folders / f"{annotated}.json")
        for path in folders.glob("?.nii.gz"):
            path.rename(folders / "masks" / path.name)
    assert run(folders, "--organs", folders / "organs.tsv") == 0
    together = result_of(folders)
    alone = {name: json.loads((folders / f"{name}.json").read_text()) for name in "ab"}
    assert together["cases"] == {name: alone[name]["cases"][name] for name in "ab"}
    assert "Duodenum" not in together["organs"] and together["organs"]["LK"] == alone["b"]["organs"]["LK"]
    volumes_ml = [alone[name]["organs"]["RK"]["annotated_ml"] for name in "ab"]
    for what in ("missed_share", "extra_share"):
        for kind, share in together["organs"]["RK"][what].items():
            shares = [alone[name]["organs"]["RK"][what][kind] for name in "ab"]
            assert share == pytest.approx(np.dot(shares, volumes_ml) / sum(volumes_ml))
    wrong_ml = [one["missed_ml"] + one["extra_ml"] for one in together["organs"]["RK"]["worst_slices"]]
    candidates = [one for name in "ab" for one in alone[name]["organs"]["RK"]["worst_slices"]]
    expected = sorted((one["missed_ml"] + one["extra_ml"] for one in candidates), reverse=True)[:5]
    assert wrong_ml == expected and len(wrong_ml) == 5


def test_the_edge_is_each_organs_tolerance(folders):
    shifted = np.roll(body(0), 5, axis=0)  # 3.75 mm
    save(folders / "masks" / "b.nii.gz", shifted)
    assert run(folders, "--organs", folders / "organs.tsv") == 0
    result = result_of(folders)
    truth, mask = body(0).T, shifted.T
    z_mm, y_mm, x_mm = AFFINE.diagonal()[2::-1]
    for label in (1, 5, 13):
        counts = slow_errors(mask, truth, label, (z_mm, y_mm, x_mm), TOLERANCES_MM[label])
        lost = result["cases"]["b"]["organs"][NAMES[label]]
        voxel_ml = z_mm * y_mm * x_mm / 1000
        for what in ("missed", "extra"):
            expected = {kind: total(counts, what, kind, None, None) * voxel_ml for kind in KINDS}
            assert lost[f"{what}_ml"] == pytest.approx(expected)


def test_an_organ_that_no_patient_has(folders, capsys):
    mask = np.zeros((10, 10, 8), np.uint8)
    mask[5, 5, 5] = 9
    (folders / "masks" / "b.nii.gz").unlink()
    save(folders / "masks" / "a.nii.gz", mask, np.diag([2, 2, 2, 1]))
    assert run(folders, "--organs", "9,10") == 0
    organs = result_of(folders)["organs"]
    assert organs["Gallbladder"]["extra_share"] == dict.fromkeys(KINDS)
    assert result_of(folders)["cases"]["a"]["organs"]["Gallbladder"]["extra_ml"]["beyond_ends"] == pytest.approx(0.008)
    assert organs["Esophagus"]["worst_slices"] == []
    table = cells(capsys.readouterr().out)
    assert table["Gallbladder"] == ["0", *[""] * 8, "a z 5"] and table["Esophagus"] == ["0", *[""] * 9]


def test_the_weights_are_named_where_the_run_is_logged(folders):
    digest = sha256((folders / "masks" / "a.nii.gz").read_bytes()).hexdigest()
    case = {"name": "a", "status": "done", "input_sha256": "0", "mask_sha256": digest}
    log = folders / "masks" / "logs" / "run" / "run.json"
    log.parent.mkdir(parents=True)
    log.write_text(
        json.dumps({"cases": [case, {**case, "name": "b", "mask_sha256": "1"}], "weights": {"sha256": "5" * 64}})
    )
    assert run(folders) == 0
    assert {name: case["weights_sha256"] for name, case in result_of(folders)["cases"].items()} == {
        "a": "5" * 64,
        "b": None,
    }
    markdown = make("errors", folders / "results")
    assert "2 patients together (a, b)" in markdown and "SHA-256 555555555555, unknown" in markdown


@pytest.mark.parametrize("damage", ["geometry", "no mask", "not in the table"])
def test_a_case_that_cannot_be_used_is_named_and_the_others_go_on(folders, capsys, damage):
    options = ("--organs", folders / "organs.tsv")
    assert run(folders, *options) == 0
    before = result_of(folders)["cases"]["b"]
    capsys.readouterr()
    path = folders / "masks" / "a.nii.gz"
    if damage == "geometry":
        save(path, np.zeros((10, 10, 8), np.uint8), np.diag([2, 2, 3, 1]))
    elif damage == "no mask":
        path.write_text("no mask")
    else:
        (folders / "organs.tsv").write_text("case\tannotated\nb\t1-11,13\n")
    assert run(folders, *options) == 1
    error, last = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "a.nii.gz" in error and last == "error: not counted: a"
    assert result_of(folders)["cases"] == {"b": before} and result_of(folders)["failed"] == ["a"]


def test_nothing_that_can_be_used(folders, capsys):
    for path in (folders / "masks").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    assert run(folders) == 2
    assert capsys.readouterr().err == f"error: {folders / 'masks'}: no mask of a case of {folders / 'labels'}\n"
    for path in (folders / "masks").iterdir():
        path.with_name(path.name[1:]).write_text("no mask")
    assert run(folders) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not (folders / "results").exists()

"""A case from file to file: where every voxel ends up, whatever its spacing or size, and what is recorded."""

import logging
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from app.cases import Case
from app.labels import ORGANS
from app.monitor import ResourceMonitor
from app.pipeline import segment_case
from app.postprocess import remove_small_components
from app.preprocess import clipped_statistics
from app.quality import Quality
from app.resample import resample_in_plane
from app.segment import Segmenter
from app.volume import read_volume
from tests.scans import mask_array, save_ct, smooth_hu


class Thresholds(Segmenter):
    """In place of the network: labels that follow from the HU alone, and a note of what it was given."""

    used_device = torch.device("cpu")

    def __init__(self):
        self.every_slice = False
        self.weights = SimpleNamespace(spacing_mm=(0.5, 1.0), slice_mm=3.0)

    def __call__(self, hu, statistics_hu, on_step, slices_per_slab, slabs_per_look):
        self.hu, self.statistics_hu = hu, statistics_hu
        on_step(len(hu))
        return np.digitize(hu, [0, 100, 250]).astype(np.uint8)


@pytest.fixture
def run_case(tmp_path):
    """Segment a CT file; returns the record and the mask's path."""

    def run(ct, segmenter, preview=None, folder=None):
        folder = folder or tmp_path / "out"
        folder.mkdir(exist_ok=True)
        case = Case("case", ct, folder / "case.nii.gz")
        monitor = ResourceMonitor(tmp_path / f"{len(list(tmp_path.iterdir()))}.csv", device="cpu")
        entry = segment_case(case, read_volume(ct), segmenter, monitor, lambda done, total: None, preview)
        return entry, case.mask

    return run


@pytest.mark.parametrize(
    ("spacing_mm", "network_mm", "network_shape"),
    [
        ((3.0, 3.0), (1.0, 1.0), (2, 120, 90)),
        ((0.25, 0.25), (0.5, 0.5), (2, 20, 15)),
        ((0.75, 2), (1.0, 0.75), (2, 80, 30)),
    ],
)
def test_outside_it_they_are_resampled_and_the_mask_comes_back(
    tmp_path, run_case, spacing_mm, network_mm, network_shape
):
    hu = smooth_hu((2, 40, 30))
    segmenter = Thresholds()
    ct = save_ct(tmp_path / "ct.nii", hu, np.diag([*spacing_mm, 5, 1]))
    entry, mask = run_case(ct, segmenter)
    assert entry["network_spacing_mm_yx"] == pytest.approx(list(network_mm))
    assert segmenter.hu.shape == network_shape
    assert np.array_equal(segmenter.hu, resample_in_plane(hu, network_shape, order=1))
    assert segmenter.statistics_hu == clipped_statistics(hu)  # of the scan as it is
    labels = np.digitize(segmenter.hu, [0, 100, 250]).astype(np.uint8)
    remove_small_components(labels)  # 50 pixels of the network's grid
    assert np.array_equal(mask_array(mask).T, resample_in_plane(labels, hu.shape, order=0))
    assert np.array_equal(nib.load(mask).affine, nib.load(ct).affine)


def test_what_the_record_says(tmp_path, run_case):
    hu = smooth_hu((3, 40, 50))
    ct = save_ct(tmp_path / "ct.nii.gz", hu)
    entry, mask = run_case(ct, segmenter := Thresholds(), tmp_path / "ct.png")
    assert np.array_equal(segmenter.hu, hu) and entry["network_spacing_mm_yx"] == [0.75, 0.75]  # taken as they are
    assert (tmp_path / "ct.png").stat().st_size > 0
    assert entry["shape_zyx"] == [3, 40, 50]
    assert entry["spacing_mm_zyx"] == [5.0, 0.75, 0.75]
    clipped = np.clip(hu, -100, 1000)
    assert (entry["mean_hu"], entry["std_hu"]) == pytest.approx((clipped.mean(), clipped.std()))
    assert list(entry["seconds"]) == ["preprocess", "segment", "postprocess", "assess", "preview", "write"]
    assert entry["warnings"] == []
    assert entry["slices_per_slab"] == 1
    labels = mask_array(mask).T
    for organ in ORGANS:
        voxels, values = np.count_nonzero(labels == organ.label), hu[labels == organ.label]
        said = entry["organs"][organ.abbreviation]
        assert said["voxels"] == voxels
        assert said["ml"] == pytest.approx(voxels * 5 * 0.75 * 0.75 / 1000, abs=0.005)
        assert said["mean_hu"] == (pytest.approx(values.mean(), abs=0.051) if voxels else None)
        assert said["sd_hu"] == (pytest.approx(values.std(), abs=0.051) if voxels else None)
    assert entry["organs"]["RK"]["voxels"] > 0
    assert entry["organs"]["LK"] == {
        "voxels": 0, "ml": 0.0, "mean_hu": None, "sd_hu": None, "first_slice": None, "last_slice": None
    }  # fmt: skip
    assert entry["quality"]["verdict"] == "implausible"  # 38 mm wide
    assert entry["quality"]["reasons"][0].startswith("no abdomen in view")


@pytest.mark.parametrize(("turn", "slices"), [(1, (2, 4)), (-1, (3, 5))])
def test_slices_are_counted_as_the_file_counts_them(tmp_path, run_case, turn, slices):
    hu = np.full((8, 40, 40), -500, np.int16)
    hu[2:5, 5:15, 5:15] = 300
    path = tmp_path / "ct.nii"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(hu[::turn].T), np.diag([0.75, 0.75, 5.0 * turn, 1])), path)
    entry, mask = run_case(path, Thresholds())
    assert tuple(entry["organs"]["Spleen"][name] for name in ("first_slice", "last_slice")) == slices
    assert [*np.flatnonzero(mask_array(mask).any(axis=(0, 1)))[[0, -1]]] == [*slices]


def test_an_ok_mask_is_no_warning(tmp_path, run_case, caplog, monkeypatch):
    monkeypatch.setattr("app.pipeline.assess", lambda *_: Quality("ok", ("a note",)))
    caplog.set_level(logging.WARNING)
    entry, _ = run_case(save_ct(tmp_path / "ct.nii"), Thresholds())
    assert entry["quality"] == {"verdict": "ok", "reasons": ["a note"]}
    assert caplog.messages == []


def test_a_preview_that_cannot_be_written_does_not_lose_the_mask(tmp_path, run_case, caplog):
    caplog.set_level(logging.WARNING)
    ct = save_ct(tmp_path / "ct.nii")
    entry, mask = run_case(ct, Thresholds(), tmp_path / "nowhere" / "ct.png")
    assert mask.exists()
    (warning,) = entry["warnings"]
    assert warning.startswith("no preview: ")
    assert "\n" not in warning
    assert caplog.messages[-1] == f"{ct}: {warning}"

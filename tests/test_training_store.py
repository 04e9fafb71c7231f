import multiprocessing

import numpy as np
import pytest

from tests.training_data import add_case
from training import store as store_module
from training.store import UNCERTAIN, read_case, read_cases, read_pixels


def volumes(depth=3):
    rng = np.random.default_rng(0)
    shape = (depth, 20, 30)
    return rng.integers(-1024, 3071, shape, np.int16), rng.integers(0, 14, shape, np.uint8)


def test_slices_and_volumes_come_back_as_they_went_in(tmp_path):
    hu, labels = volumes()
    case = add_case(tmp_path, "a", hu, labels, annotated=(1, 3))
    add_case(tmp_path, "b", hu, None)
    labelled, unlabelled = read_cases(tmp_path)
    assert (labelled.name, tuple(labelled.annotated), labelled.mean_hu) == ("a", (1, 3), case.mean_hu)
    for z in range(3):
        slice_hu, slice_labels = read_pixels(tmp_path, labelled, z)
        assert slice_hu.dtype == np.int16 and np.array_equal(slice_hu, hu[z])
        assert slice_labels.dtype == np.uint8 and np.array_equal(slice_labels, labels[z])
    assert np.array_equal(read_pixels(tmp_path, labelled), (hu, labels))
    assert (read_pixels(tmp_path, unlabelled)[1] == UNCERTAIN).all()


@pytest.mark.parametrize("failing", ["labels", "case.json"])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, failing):
    hu, labels = volumes()

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    if failing == "labels":
        whole = store_module.blosc2.asarray
        monkeypatch.setattr(
            store_module.blosc2, "asarray",
            lambda array, **options: interrupt() if array.dtype == np.uint8 else whole(array, **options),
        )  # fmt: skip
    else:
        monkeypatch.setattr(store_module.json, "dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        add_case(tmp_path, "a", hu, labels)
    assert list(tmp_path.iterdir()) == []
    assert read_case(tmp_path, "a") is None


def test_failed_replacement_keeps_the_case(tmp_path, monkeypatch):
    hu, labels = volumes()
    add_case(tmp_path, "a", hu, labels)

    def interrupt(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(store_module.blosc2, "asarray", interrupt)
    with pytest.raises(OSError, match="no space"):
        add_case(tmp_path, "a", -hu, labels)
    case = read_case(tmp_path, "a")
    assert np.array_equal(read_pixels(tmp_path, case)[0], hu)


def test_a_forked_loader_reads_what_its_parent_read_from(tmp_path):
    hu = np.random.default_rng(0).integers(-1024, 3071, (2, 512, 512)).astype(np.int16)  # as large as to need threads
    case = add_case(tmp_path, "a", hu, None)
    read_pixels(tmp_path, case)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        read, _ = pool.apply_async(read_pixels, (tmp_path, case, 1)).get(timeout=30)
    assert np.array_equal(read, hu[1])


def test_an_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.prepare"):
        read_cases(tmp_path)

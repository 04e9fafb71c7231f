"""Names of cases and masks, and every wrong use that must be refused before any work."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.fileset import FileSet

from app.cases import Case, case_name, find_cases, input_sha256, shard
from app.ct import read_ct
from app.errors import InputError, UsageError
from app.record import file_sha256
from app.runjson import read_record
from tests.dicom_series import Series
from tests.scans import save_ct, smooth_hu


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001"),
        ("X_0000.nii.gz", "X"),
        ("X.nii.gz", "X"),
        ("X.nii", "X"),
        ("X_0000.mha", "X"),
        ("X.nrrd", "X"),
        ("X_0000.NII.GZ", "X"),
        ("X.Nii", "X"),
        ("X.mhd", "X"),
        ("X_0000_0000.nii.gz", "X_0000"),
        ("X_0001.nii.gz", "X_0001"),
        ("X.seg.nii.gz", "X.seg"),
        ("a b.nii.gz", "a b"),
        ("_0000.nii.gz", "_0000"),
        (".nii.gz", ".nii.gz"),
        ("notes.txt", "notes.txt"),
        ("X.gz", "X.gz"),
    ],
)
def test_name_of_a_case(file, name):
    assert case_name(Path("in") / file) == name


def test_a_folder_gives_its_cases_in_order(tmp_path):
    kinds = ["d.NRRD", "b_0000.nii", "a_0000.nii.gz", "c.mha", "E.nii.gz", "f.mhd", "g.zip"]
    folder = touch(tmp_path / "in", *kinds, "notes.txt", ".hidden_0000.nii.gz", "._a_0000.nii.gz", "a.json", "x.gz")
    cases = find_cases([folder], tmp_path / "out")
    assert names(cases) == ["E", "a", "b", "c", "d", "f", "g"]
    assert cases[1] == Case("a", folder / "a_0000.nii.gz", tmp_path / "out" / "a.nii.gz")
    assert all(case.mask == tmp_path / "out" / f"{case.name}.nii.gz" for case in cases)


def test_folders_below_give_cases_named_by_their_way(tmp_path):
    folder = touch(tmp_path / "in", "a.nii.gz")
    touch(folder / "more", "b_0000.nii.gz")
    touch(folder / "more" / "deep", "c.mha")
    touch(folder / ".hidden", "d.nii.gz")
    touch(folder / "__MACOSX" / "more", "._b_0000.nii.gz")
    cases = find_cases([folder], tmp_path / "out")
    assert names(cases) == ["a", "more_b", "more_deep_c"]
    assert cases[1] == Case("more_b", folder / "more" / "b_0000.nii.gz", tmp_path / "out" / "more_b.nii.gz")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    folder = touch(tmp_path / "in", "a.nii.gz")
    touch(tmp_path / "elsewhere", "b.nii.gz")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "nowhere_0000.nii.gz").symlink_to("nothing")  # a case that fails, not one that is passed over
    (folder / "circle").symlink_to(folder)
    (folder / "up").symlink_to("..")
    (folder / "link" / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "too").symlink_to(tmp_path / "elsewhere")
    assert names(find_cases([folder], tmp_path / "out")) == ["a", "link_b", "nowhere"]


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = touch(tmp_path / "in", "a.nii.gz")
    for name in ("b.img", "c.dcm", "d"):
        os.mkfifo(folder / name)
    assert names(find_cases([folder], tmp_path / "out")) == ["a", "b"]  # b fails when it is read


def test_an_outputs_folder_among_the_inputs_is_passed_over(tmp_path):
    folder = touch(tmp_path / "in", "a_0000.nii.gz")
    touch(folder / "masks", "a.nii.gz", "b.nii.gz")
    assert names(find_cases([folder], folder / "masks")) == ["a"]


def test_a_file_that_is_named_is_a_case_whatever_it_is(tmp_path):
    folder = touch(tmp_path / "in", "notes.txt", ".hidden.nii.gz")
    (folder / "dangling.nii.gz").symlink_to("nowhere")
    (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    given = [folder / name for name in ("notes.txt", ".hidden.nii.gz", "dangling.nii.gz", "loop.nii.gz")]
    assert names(find_cases(given, tmp_path)) == [".hidden", "dangling", "loop", "notes.txt"]


def test_one_file_named_twice_is_one_case(tmp_path, monkeypatch):
    folder = touch(tmp_path / "in", "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert names(find_cases([folder, folder / "a.nii.gz", Path("in/a.nii.gz"), Path("in")], tmp_path)) == ["a"]
    other = touch(tmp_path / "other", "b.nii.gz", "c.nii.gz")
    assert names(find_cases([other / "b.nii.gz", folder], tmp_path)) == ["a", "b"]


def usage_error(inputs, outputs):
    with pytest.raises(UsageError) as caught:
        find_cases(inputs, outputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_folder_is_refused_with_the_likely_cause(tmp_path):
    folder = touch(tmp_path / "in", "notes.txt", ".hidden.nii.gz")
    message = usage_error([folder], tmp_path)
    assert message.startswith(f"no CT in {folder}: ")
    assert "X_0000.nii.gz" in message
    assert "`-v inputs:/workspace/inputs` makes an empty named volume" in message
    assert '-v "$PWD/inputs":/workspace/inputs' in message
    full, nothing, long = touch(tmp_path / "full", "a.nii.gz"), tmp_path / "nothing", tmp_path / ("a" * 300)
    assert str(folder) in usage_error([full, folder], tmp_path)
    assert f"{nothing} does not exist" in usage_error([full, nothing], tmp_path)
    assert str(long) in usage_error([full, long], tmp_path)


def test_a_mask_name_too_long_leaves_the_error_to_its_case(tmp_path):
    long = "a" * 250 + ".nii"
    assert names(find_cases([touch(tmp_path / "in", long, "b.nii")], tmp_path)) == ["a" * 250, "b"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert usage_error([tmp_path], tmp_path) == f"{tmp_path}: Permission denied"


@pytest.mark.parametrize(
    "pair",
    [("X_0000.nii.gz", "X.nii.gz"), ("X.nii.gz", "X.nii"), ("X.NII.GZ", "X.nii.gz"), ("X.mha", "X_0000.nrrd"),
     ("X/b.nii.gz", "X_b.nii.gz"), ("X.nii.gz", "x_0000.nii.gz"), ("M\u00fcller.nii", "Mu\u0308ller.nii")],
)  # fmt: skip
def test_two_inputs_of_one_mask_are_refused(tmp_path, pair):
    """Also where only file systems that tell no capitals or no spellings apart would write one."""
    for name in pair:
        touch((tmp_path / "in" / name).parent, Path(name).name)
    message = usage_error([touch(tmp_path / "in", "a.nii.gz")], tmp_path / "out")
    assert all(name in message for name in pair)
    masks = {case_name(Path(name.replace("/", "_"))) + ".nii.gz" for name in pair}
    assert f"would both write {' or '.join(sorted(masks))}; rename one" in message
    folders = [touch(tmp_path / name, "X_0000.nii.gz") for name in ("one", "two")]
    assert "would both write X.nii.gz" in usage_error(folders, tmp_path / "out")


def test_a_mask_never_replaces_its_input(tmp_path, monkeypatch):
    folder = touch(tmp_path / "in", "X_0000.nii.gz", "Y.nii")
    assert [case.mask.name for case in find_cases([folder], folder)] == ["X.nii.gz", "Y.nii.gz"]
    (folder / "X_0000.nii.gz").rename(folder / "X.nii.gz")
    assert "the mask of" in usage_error([folder], folder)
    (tmp_path / "link").symlink_to(folder)
    assert "the mask of" in usage_error([folder], tmp_path / "link")
    monkeypatch.chdir(folder)
    assert "the mask of" in usage_error([folder], Path("."))


def record_masks(outputs, *names):
    """What a run in this outputs folder leaves: its record of the masks that are there."""
    cases = [
        {"name": name, "status": "done", "input_sha256": "", "mask_sha256": file_sha256(outputs / f"{name}.nii.gz")}
        for name in names
    ]
    (outputs / "logs" / "run").mkdir(parents=True)
    (outputs / "logs" / "run" / "run.json").write_text(json.dumps({"weights": {"sha256": ""}, "cases": cases}))


def test_masks_of_an_earlier_run_among_the_inputs_are_passed_over(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("app.record.read_record", lambda path: (read.append(path), read_record(path))[1])
    folder = touch(tmp_path / "in", "X_0000.nii.gz", "X.nii.gz", "Y_0000.nii.gz", "Y.nii.gz")
    Series().write(folder / "Z")
    touch(folder, "Z.nii.gz")
    message = usage_error([folder], folder)  # whatever X.nii.gz is, no run recorded it
    assert message.endswith(f"both write X.nii.gz; rename one, or remove {folder / 'X.nii.gz'} if a killed run left it")
    record_masks(folder, "X", "Y", "Z")
    cases = find_cases([folder], folder)
    assert [case.input.name for case in cases] == ["X_0000.nii.gz", "Y_0000.nii.gz", "Z"]
    assert len(read) == 1  # a record of many cases has many megabytes
    (folder / "Y.nii.gz").write_text("another one")
    assert "would both write Y.nii.gz" in usage_error([folder], folder)


# DICOM


def test_a_series_is_named_by_its_folder_and_where_there_are_several_by_its_number(tmp_path):
    root = tmp_path / "in"
    Series(number=2).write(root / "one")
    Series(number=3).write(root / "two" / "deep")
    Series(number=4).write(root / "two" / "deep")
    Series(number=5, tags={"SeriesNumber": None}).write(root / "two" / "deep")
    Series(number=6, tags={"SeriesNumber": 4}).write(root / "two" / "deep")
    Series(number=7).write(root / "spread" / "first")
    for path in sorted((root / "spread" / "first").iterdir())[2:]:
        (root / "spread" / "second").mkdir(exist_ok=True)
        path.rename(root / "spread" / "second" / path.name)
    touch(root, "image.nii.gz", "notes.txt")
    cases = find_cases([root], tmp_path / "out")
    deep = "two_deep"
    assert names(cases) == ["image", "one", "spread", f"{deep}_3", f"{deep}_4", f"{deep}_4_2", f"{deep}_x"]
    assert cases[1].input == root / "one"
    assert cases[1].mask == tmp_path / "out" / "one.nii.gz"
    assert len(cases[2].files) == 5
    assert names(find_cases([root / "one"], tmp_path / "out")) == ["one"]
    assert names(find_cases([root / "one", root / "spread"], tmp_path / "out")) == ["one", "spread"]


def test_dicom_files_that_are_named_are_the_series_they_hold(tmp_path, monkeypatch):
    files = Series().write(tmp_path / "in")
    enhanced = Series(number=2).write_multiframe(tmp_path / "in" / "enhanced.dcm")
    (case,) = find_cases([enhanced], tmp_path)
    assert (case.name, case.files) == ("enhanced", (enhanced,))
    (case,) = find_cases(files, tmp_path)
    assert (case.name, case.files) == ("in", tuple(files))
    monkeypatch.chdir(tmp_path)
    assert names(find_cases([files[0], *(file.relative_to(tmp_path) for file in files[1:])], tmp_path)) == ["in"]
    for file in files:
        file.rename(file.with_suffix(".IMG"))  # a usual name on old discs
    assert names(find_cases([tmp_path / "in"], tmp_path / "out")) == ["in_1", "in_2"]
    files = [file.with_suffix(".IMG") for file in files]
    assert names(find_cases(files, tmp_path)) == ["in"]
    lines = []
    mr = Series(number=3, tags={"Modality": "MR"}).write(tmp_path / "mr")
    assert names(find_cases([*files, mr[0]], tmp_path, lines.append)) == ["in"]
    assert lines == [f"{tmp_path / 'in'}; passed over, no slices of an axial CT: 1 MR"]
    message = usage_error([files[0]], tmp_path)
    assert "give the folder of its slices; passed over, no slices of an axial CT: 1 image of a CT series" in message
    (tmp_path / "in" / "DICOMDIR").write_bytes(b"not looked into")
    assert names(find_cases([tmp_path / "in" / "DICOMDIR"], tmp_path)) == ["in_1", "in_2"]
    monkeypatch.chdir(tmp_path / "in")
    assert names(find_cases([Path(".")], tmp_path)) == ["in_1", "in_2"]


def test_what_is_passed_over_is_told_in_one_line_a_folder(tmp_path):
    lines = []
    Series().write(tmp_path / "in" / "a")
    Series(number=2, tags={"Modality": "MR"}).write(tmp_path / "in" / "b")
    Series(number=3, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}).write(tmp_path / "in" / "b")
    assert names(find_cases([tmp_path / "in"], tmp_path / "out", lines.append)) == ["a"]
    assert lines == [f"{tmp_path / 'in'}; passed over, no slices of an axial CT: 5 MR, 5 localizer"]
    message = usage_error([tmp_path / "in" / "b"], tmp_path / "out")
    assert message.startswith(f"no CT in {tmp_path / 'in' / 'b'}; passed over, no slices of an axial CT: 5 MR, 5 local")


def test_a_dicomdir_is_neither_a_slice_nor_something_passed_over(tmp_path):
    lines = []
    files = Series().write(tmp_path / "in")
    media = FileSet()
    for path in files:
        media.add(path)
    media.write(tmp_path / "disc")
    cases = find_cases([tmp_path / "disc"], tmp_path / "out", lines.append)
    assert names(find_cases([tmp_path / "disc" / "DICOMDIR"], tmp_path / "out", lines.append)) == names(cases)
    assert [len(case.files) for case in cases] == [5]
    assert lines == []


def test_dicom_that_cannot_be_read_is_a_case_that_fails(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02")
    (case,) = find_cases([tmp_path / "in"], tmp_path / "out")
    assert case.name == "in"
    with pytest.raises(InputError, match=r"1 files that cannot be read, 'damaged\.dcm' among them"):
        read_ct(case.source)


def header_of(raw):
    """A DICOM file up to its pixels."""
    return raw[: raw.index(b"\xe0\x7f\x10\0OW")]


@pytest.mark.parametrize(
    "lost",
    [
        lambda folder: (folder / "I6").symlink_to("/proc/self/mem"),  # an error of reading, even for root
        lambda folder: (folder / "I6.dcm").symlink_to("nowhere"),
        lambda folder: (folder / "I6.dcm").write_bytes(b"<html>404 not found</html>"),
        lambda folder: (folder / "I6.IMA").write_bytes(b""),
        lambda folder: (folder / "I6.dcm").write_bytes(bytes(4096)),
        lambda folder: (folder / "I6").write_bytes(header_of((folder / "S1I0001").read_bytes())),
    ],
    ids=["unreadable", "gone", "another file", "empty", "zeros", "cut behind an element"],
)
def test_a_slice_that_is_lost_at_the_end_fails_its_series(tmp_path, lost):
    """No gap tells of it: the mask would end too early."""
    Series().write(tmp_path / "in")
    lost(tmp_path / "in")
    (case,) = find_cases([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(InputError, match=r"1 files that cannot be read, 'I6.* among them \(.+\): lost slices\?"):
        read_ct(case.source)


def test_the_checksum_of_an_input_is_that_of_its_reading(tmp_path):
    Series(hu=smooth_hu((3, 48, 64))).write(tmp_path / "in" / "a")
    save_ct(tmp_path / "in" / "b.nii.gz")
    for case in find_cases([tmp_path / "in"], tmp_path / "out"):
        assert input_sha256(case) == read_ct(case.source).sha256
        case.files[0].unlink()
        assert input_sha256(case) is None


# Shards


CASES = [Case(f"{number:03}", Path(f"{number}.nii.gz"), Path("out")) for number in range(23)]


@given(st.integers(0, len(CASES)), st.integers(1, 40))
def test_shards_hold_every_case_once(count, shards):
    parts = [shard(CASES[:count], f"{k}/{shards}") for k in range(shards)]
    assert sorted(case.name for part in parts for case in part) == names(CASES[:count])
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(part == sorted(part, key=lambda case: case.name) for part in parts)
    assert names(shard(CASES[:7], "1/3")) == ["001", "004"]


@pytest.mark.parametrize(
    "text", ["3/3", "-1/3", "1", "/", "1/", "/3", "0/0", "a/b", "1/3/5", "1.0/3", "", " 1/3", "1/-3"]
)
def test_another_form_is_refused(text):
    with pytest.raises(UsageError, match=r"--shard takes K/N with K = 0 \.\. N-1") as caught:
        shard(CASES, text)
    assert str(caught.value).endswith(f"got {text}")

"""Writing masks: whole or not at all, on full disks, through kills, beside runs that live."""

import errno
import gzip
import hashlib
import os
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

import app.maskfile as module
from app.errors import OutputError
from app.maskfile import remove_stale_temporaries, write_mask
from app.volume import read_volume
from tests.nifti_files import REPOSITORY, labels_of, save


@pytest.fixture
def scan(tmp_path):
    """(mask, geometry) of a small CT."""
    volume = read_volume(save(tmp_path / "input.nii"))
    return labels_of(volume.hu), volume.geometry


def outputs(tmp_path):
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


def test_a_mask_is_deterministic_replaced_and_readable_by_others(tmp_path, scan):
    path = outputs(tmp_path) / "m.nii.gz"
    first = write_mask(*scan, path)
    raw = path.read_bytes()
    assert first == hashlib.sha256(raw).hexdigest()
    assert raw[4:8] == bytes(4)  # gzip's time
    assert write_mask(np.zeros_like(scan[0]), scan[1], path) != first
    assert write_mask(*scan, path) == first
    assert path.read_bytes() == raw
    assert os.listdir(path.parent) == ["m.nii.gz"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_short_writes_are_continued():
    written = []

    class Slow:
        def write(self, data):
            written.append(bytes(data[:3]))
            return len(written[-1])

    module._write_all(Slow(), b"0123456789")
    assert b"".join(written) == b"0123456789"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (lambda mask: mask.astype(np.int16), "m.nii.gz", "got int16"),
        (lambda mask: mask[1:], "m.nii.gz", "must be uint8"),
        (lambda mask: mask, "m.nii", r"must end in \.nii\.gz"),
    ],
)
def test_a_wrong_mask_is_a_value_error(tmp_path, scan, change, name, message):
    with pytest.raises(ValueError, match=message):
        write_mask(change(scan[0]), scan[1], tmp_path / name)


def test_no_pattern_finds_a_half_written_mask(tmp_path, scan, monkeypatch):
    folder, seen = outputs(tmp_path), []
    inner = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(os.listdir(folder)), inner(descriptor)))
    write_mask(*scan, folder / "m.nii.gz")
    (temporary,), after = seen
    assert temporary.startswith(".") and not temporary.endswith(".nii.gz")
    assert after == ["m.nii.gz"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("function", ["_write_gzip", "_verified"])
def test_a_stop_leaves_the_old_mask_and_no_temporary(tmp_path, scan, monkeypatch, stop, function):
    path = outputs(tmp_path) / "m.nii.gz"
    path.write_bytes(b"old")
    inner = getattr(module, function)

    def stopped(*arguments):
        inner(*arguments)
        raise stop

    monkeypatch.setattr(module, function, stopped)
    with pytest.raises(stop):
        write_mask(*scan, path)
    assert os.listdir(path.parent) == ["m.nii.gz"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("damage", ["flip", "cut", "another", "longer"])
def test_a_mask_that_reads_back_otherwise_is_an_error(tmp_path, scan, monkeypatch, damage):
    """A disk that lies: the temporary's bytes change between sync and reading back."""
    folder = outputs(tmp_path)

    def lying_sync(descriptor):
        size = os.fstat(descriptor).st_size
        if damage == "flip":
            os.pwrite(descriptor, b"\xff\x00", size // 2)
        elif damage == "cut":
            os.ftruncate(descriptor, size - 5)
        elif damage == "longer":
            os.pwrite(descriptor, b"x", size)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, gzip.compress(scan[1].mask_header + bytes(scan[0].size)), 0)

    monkeypatch.setattr(os, "fsync", lying_sync)
    with pytest.raises(OutputError, match=r"m\.nii\.gz': cannot be written: read back") as error:
        write_mask(*scan, folder / "m.nii.gz")
    assert "\n" not in str(error.value)
    assert os.listdir(folder) == []


def test_it_is_read_back_through_the_descriptor_that_holds_the_lock(tmp_path, scan, monkeypatch):
    """On SMB shares a lock keeps all other descriptors out, even those of its own process."""
    path, opened = outputs(tmp_path) / "m.nii.gz", []

    def open_once(file, *arguments, **options):
        if file in opened:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        opened.append(file)
        return open(file, *arguments, **options)

    monkeypatch.setattr(module, "open", open_once, raising=False)
    assert write_mask(*scan, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(opened) == 1


def test_a_temporary_that_another_machines_run_removed_is_written_again(tmp_path, scan, monkeypatch):
    """Where locks do not reach other machines, theirs takes a living run's temporary for a killed one's, once."""
    folder, sync, removed = outputs(tmp_path), os.fsync, []

    def removing_sync(descriptor):
        sync(descriptor)
        if not removed:
            removed.extend(path.unlink() or path for path in folder.glob(".mask-*"))

    monkeypatch.setattr(os, "fsync", removing_sync)
    write_mask(*scan, folder / "m.nii.gz")
    assert len(removed) == 1 and os.listdir(folder) == ["m.nii.gz"]


def test_a_missing_folder_and_a_folder_in_the_way_are_errors(tmp_path, scan):
    with pytest.raises(OutputError, match="No such file or directory"):
        write_mask(*scan, tmp_path / "nowhere" / "m.nii.gz")
    folder = outputs(tmp_path)
    (folder / "m.nii.gz").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        write_mask(*scan, folder / "m.nii.gz")
    assert os.listdir(folder) == ["m.nii.gz"]


def test_a_full_disk_is_an_error_and_keeps_the_old_mask(tmp_path, small_disk):
    array = np.random.default_rng(0).integers(0, 14, (64, 64, 64)).astype(np.int16)  # noise: > 64 KiB compressed
    volume = read_volume(save(tmp_path / "input.nii", array))
    disk = small_disk(64)
    old = write_mask(np.zeros_like(labels_of(volume.hu)), volume.geometry, disk / "m.nii.gz")
    with pytest.raises(OutputError, match=r"m\.nii\.gz': cannot be written: No space left on device$"):
        write_mask(labels_of(volume.hu), volume.geometry, disk / "m.nii.gz")
    assert os.listdir(disk) == ["m.nii.gz"]
    assert hashlib.sha256((disk / "m.nii.gz").read_bytes()).hexdigest() == old


KILLED = """
import os, signal, sys
import pathlib
import app.maskfile as module
from app.volume import read_volume
volume = read_volume(sys.argv[1])
module.os.replace = lambda *paths: {action}
module.write_mask(volume.hu.astype("u1"), volume.geometry, pathlib.Path(sys.argv[2]))
"""


def test_a_killed_runs_temporary_goes_and_a_living_ones_stays(tmp_path, scan):
    folder = outputs(tmp_path)
    names = [str(tmp_path / "input.nii"), str(folder / "m.nii.gz")]
    killed = KILLED.format(action="os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", killed, *names], cwd=REPOSITORY).returncode == -9
    (stale,) = os.listdir(folder)
    waiting = KILLED.format(action="(print('ready', flush=True), sys.stdin.read(), os.rename(*paths))")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", waiting, *names], cwd=REPOSITORY, **pipes) as living:
        assert living.stdout.readline() == b"ready\n"
        assert len(os.listdir(folder)) == 2
        remove_stale_temporaries(folder)
        (left,) = os.listdir(folder)
        assert left != stale
        living.stdin.close()
    assert living.returncode == 0
    assert os.listdir(folder) == ["m.nii.gz"]
    remove_stale_temporaries(folder)
    assert os.listdir(folder) == ["m.nii.gz"]


def test_only_own_regular_temporaries_are_removed(tmp_path):
    folder, precious = outputs(tmp_path), tmp_path / "precious"
    precious.write_text("kept")
    (folder / ".mask-1.partial").symlink_to(precious)
    (folder / ".mask-2.partial").mkdir()
    os.mkfifo(folder / ".mask-3.partial")
    for name in ("m.nii.gz", ".hidden", "mask-4.partial", ".mask-5.partial.txt"):
        (folder / name).write_bytes(b"x")
    before = set(os.listdir(folder))
    (folder / ".mask-6.partial").write_bytes(b"x")
    remove_stale_temporaries(folder)
    assert set(os.listdir(folder)) == before
    remove_stale_temporaries(folder / "missing")


def test_where_locks_do_not_work_age_decides(tmp_path, scan, monkeypatch):
    folder = outputs(tmp_path)

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    write_mask(*scan, folder / "m.nii.gz")
    for name, age_s in ((".mask-old.partial", 4000), (".mask-new.partial", 10)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    remove_stale_temporaries(folder)
    assert sorted(os.listdir(folder)) == [".mask-new.partial", "m.nii.gz"]

"""How many CPUs a process may use, in control groups made of files."""

import os

import pytest

from app.cpus import usable_cpus


@pytest.mark.parametrize(
    ("affinity", "files", "cpus"),
    [
        (16, {}, 16),
        (16, {"cpu.max": "max 100000\n"}, 16),
        (16, {"cpu.max": "400000 100000\n"}, 4),
        (2, {"cpu.max": "400000 100000\n"}, 2),
        (16, {"cpu.max": "250000 100000\n"}, 3),
        (16, {"cpu.max": "50000 100000\n"}, 1),
        (1, {"cpu.max": "max 100000\n"}, 1),
        (16, {"cpu.max": "nonsense\n"}, 16),
        (16, {"cpu.max": ""}, 16),
        (16, {"cpu.max": "1 0\n"}, 16),
        (16, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        (16, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (16, {"cpu/cpu.cfs_quota_us": "150000\n"}, 16),
    ],
)
def test_no_more_than_affinity_and_quota(tmp_path, monkeypatch, affinity, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == cpus

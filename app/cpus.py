"""How many CPUs this process may use."""

import math
import os
from pathlib import Path


def usable_cpus(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: its affinity, and its control group's quota rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota(control_group))))


def _quota(control_group: Path) -> float:
    """CPUs granted by the control group (v2, then v1); infinity if unlimited or unknown."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((control_group / file).read_text() for file in files).split()
            if quota not in ("max", "-1"):
                return float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return math.inf

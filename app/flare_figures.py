"""The formulas of the FLARE22 organizers' evaluation script (Efficiency.py and load_json.py in JunMa11/FLARE)."""

from collections import Counter
from typing import Any

LASTING_SHARE = 0.02


def cpu_shares(before: Any, now: Any) -> tuple[float, float, float]:
    """User, system and idle time of the host between two `psutil.cpu_times()`, in percent.

    The organizers divide by user + system + idle + 0.1 s, each the difference in CPU seconds, summed over all cores.
    Nice, iowait, interrupts and steal count nowhere. The 0.1 s keeps the quotient defined when nothing was counted.
    """
    user_s, system_s, idle_s = (getattr(now, name) - getattr(before, name) for name in ("user", "system", "idle"))
    total_s = user_s + system_s + idle_s + 0.1
    return 100 * user_s / total_s, 100 * system_s / total_s, 100 * idle_s / total_s


def cpu_percent(before: Any, now: Any) -> float:
    """The organizers' CPU utilisation of the whole host, 0 to 100: what `cpu_shares` leaves of idle time.

    An idle host of N cores, sampled every 0.1 s, reads about 100 / (N + 1) %, not 0.
    """
    return 100 - cpu_shares(before, now)[2]


def lasting_maximum(counts: Counter[float]) -> float | None:
    """The organizers' "GPU_Mem": the largest value seen in more than 2 % of the samples.

    Args:
        counts: How often each value was seen.

    Returns:
        Where no value lasts so long the largest of all, as from FLARE23 on; None without a value.
    """
    least = LASTING_SHARE * sum(counts.values())
    return max((value for value, count in counts.items() if count > least), default=max(counts, default=None))

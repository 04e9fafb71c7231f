"""The organizers' formulas by hand."""

from collections import Counter, namedtuple

import pytest

from app.flare_figures import cpu_percent, cpu_shares, lasting_maximum

CpuTimes = namedtuple("CpuTimes", "user nice system idle iowait")


@pytest.mark.parametrize(
    ("user", "system", "idle", "percent"),  # the first: 4 idle cores, 0.1 s; the last: nothing was counted
    [(0.0, 0.0, 0.4, 20), (0.3, 0.1, 0.0, 100), (0.2, 0.3, 0.4, 60), (0.0, 0.0, 0.0, 100)],
)
def test_cpu_percent(user, system, idle, percent):
    before, now = CpuTimes(10, 5, 20, 30, 7), CpuTimes(10 + user, 9, 20 + system, 30 + idle, 9)
    assert cpu_percent(before, now) == pytest.approx(percent)
    total_s = user + system + idle + 0.1  # nice and iowait count nowhere
    assert cpu_shares(before, now) == pytest.approx([100 * seconds / total_s for seconds in (user, system, idle)])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1500.0] * 97 + [1900.0] * 2 + [9000.0], 1500),  # 2 of 100 are not more than 2 %
        ([1500.0] * 97 + [1900.0] * 3, 1900),
        ([float(k) for k in range(100)], 99),  # no value lasts: the organizers' script of FLARE22 stops there
        ([], None),
    ],
)
def test_lasting_maximum(values, expected):
    assert lasting_maximum(Counter(values)) == expected

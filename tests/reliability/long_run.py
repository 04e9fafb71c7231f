"""200 cases in one process: does anything grow?

After each case its memory, threads and open files are read from outside. The first quarter, in which allocators fill
their pools, is left out; over the rest the slope of the memory is estimated (Theil-Sen, 95 % interval). Counted as
lost: memory that grows by more than noise and more than 50 KiB a case (its entry in run.json stays, 12 KiB in Python;
its voxels, if they stayed, would be 80 KiB and more), threads or open files that become more, a case without its
mask, a monitor that takes 1 % of a core or more.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from scipy.stats import theilslopes

from tests.reliability.runs import finish, last_record, make_cases, masks, start
from tests.reliability.trial import Row, main, row

MOST_MIB_PER_100 = 5.0


def trial(folder: Path, cases: int = 200, monitor_percent: int = 1) -> Iterator[Row]:
    inputs, weights = make_cases(folder, cases)
    outputs = folder / "outputs"
    process = start(inputs, outputs, weights)
    watched, samples = psutil.Process(process.pid), []
    while process.is_alive():
        done = len([*outputs.glob("*.nii.gz")])
        if done > len(samples) and done < cases:  # at its end it gives everything back
            try:
                with watched.oneshot():
                    reading = (watched.memory_info().rss / 2**20, watched.num_threads(), watched.num_fds())
            except psutil.Error:
                break
            samples += [reading] * (done - len(samples))
        time.sleep(0.005)
    status = finish(process)
    record = last_record(outputs)
    problem = [f"status {status}"] if status else []
    problem += [f"{cases - len(masks(outputs))} masks are missing"] if len(masks(outputs)) != cases else []
    settled = samples[cases // 4 :]
    rss_mib, threads, files = zip(*settled, strict=True)
    slope, _, low, high = theilslopes(rss_mib, range(len(rss_mib)))
    if low > 0 and 100 * slope > MOST_MIB_PER_100:
        problem.append(f"memory grows by {100 * slope:.2f} MiB in 100 cases")
    quarter = len(settled) // 4
    for name, counts in (("threads", threads), ("open files", files)):
        if min(counts[-quarter:]) > max(counts[:quarter]):
            problem.append(f"{name} grow from {max(counts[:quarter])} to {min(counts[-quarter:])}")
    monitor = record["monitor"]
    percent = 100 * monitor["monitor_cpu_s"] / monitor["duration_s"]
    if percent >= monitor_percent:
        problem.append(f"the monitor takes {percent:.2f} % of a core")
    yield row(
        f"{cases} cases in one process: memory, threads and open files flat, "
        f"monitor under {monitor_percent} % of a core",
        [problem],
        **{
            "RSS slope, MiB per 100 cases (95 % interval)": [round(100 * x, 3) for x in (slope, low, high)],
            "RSS, MiB": [round(min(rss_mib), 1), round(max(rss_mib), 1)],
            "threads": [min(threads), max(threads)],
            "open files": [min(files), max(files)],
            "monitor, % of a core": round(percent, 2),
            "s": monitor["duration_s"],
        },
    )


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))

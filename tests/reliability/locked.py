"""Nobody let in: changed weights are refused; a run opens no socket, starts no program, unpickles no object.

Counted as lost: a weights file with one bit changed that is taken, or refused without both sums; a run, in a network
namespace without an interface where the machine allows one, that fails, or in which Python's audit hooks see a
socket, a process started, a pickled class looked up, or a file opened for writing outside the outputs folder; a file
of the program in which ruff's security rules (flake8-bandit) find something.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from app.options import WEIGHTS
from app.weights import WeightsError, load_weights
from tests.hostile import hostile_names
from tests.reliability.runs import make_cases, masks
from tests.reliability.trial import ROOT, Row, main, row

EXPECTED = "gdcm.py: S603"  # starts this Python with one file of ours, to decode compressed DICOM
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pickle.")
AUDITED = """
import os, runpy, sys
forbidden, outputs, log = tuple(sys.argv[1].split()), sys.argv[2], open(sys.argv[3], "w")
sys.argv[1:] = ["--outputs", outputs, *sys.argv[4:]]
def hook(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event.startswith(forbidden) or writes and not os.fsdecode(args[0]).startswith(outputs):
        print(event, *map(repr, args), file=log, flush=True)
sys.addaudithook(hook)
runpy.run_module("app", run_name="__main__", alter_sys=True)
"""


def trial(folder: Path, changes: int = 50, runs: int = 5, seed: int = 0) -> Iterator[Row]:
    yield _changed_weights(folder, changes, random.Random(seed))
    yield _audited_runs(folder, runs, seed)
    yield _security_rules()


def _changed_weights(folder: Path, count: int, rng: random.Random) -> Row:
    whole = WEIGHTS.read_bytes()
    path = folder / WEIGHTS.name
    true_sum = Path(shutil.copy(f"{WEIGHTS}.sha256", folder)).read_text().split()[0]
    problems = []
    for _ in range(count):
        changed = bytearray(whole)
        at, bit = rng.randrange(len(whole)), rng.randrange(8)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        try:
            load_weights(path)
        except WeightsError as error:
            sums = [word for word in str(error).replace(",", " ").split() if len(word) == 64]
            problems.append([] if true_sum in sums and len({*sums}) == 2 else [f"bit {bit} of byte {at}: {error}"])
        else:
            problems.append([f"bit {bit} of byte {at}: taken"])
    return row("shipped weights with one bit changed: refused with both sums", problems)


def _audited_runs(folder: Path, count: int, seed: int) -> Row:
    """Each of five cases with a name that a shell would trip over."""
    inputs, weights = make_cases(folder)
    offline = ["unshare", "--net"]
    if subprocess.run([*offline, "true"], capture_output=True).returncode:
        offline = []
    names = [name for name in hostile_names(100 * count, seed) if name.endswith(".nii.gz")]
    problems = []
    for number in range(count):
        for path in [*inputs.iterdir()]:
            path.rename(inputs / names.pop())
        outputs, log = folder / f"outputs{number}", folder / "audit.log"
        command = [*offline, sys.executable, "-c", AUDITED, " ".join(FORBIDDEN), outputs, log]
        command += ["--inputs", inputs, "--weights", weights, "--device", "cpu"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        problem = [] if run.returncode == 0 and len(masks(outputs)) == 5 else [f"{run.returncode}: {run.stderr[-500:]}"]
        problems.append(problem + log.read_text(errors="replace").splitlines())
    what = "a run without network: no socket, no shell or other program, no pickle, no file written elsewhere"
    return row(what, problems, **{"network namespace of its own": bool(offline)})


def _security_rules() -> Row:
    """S101 (assert) and the like count too: the program has none."""
    files = [*(ROOT / "app").glob("*.py")]
    command = [sys.executable, "-m", "ruff", "check", "--select", "S", "--output-format", "json", *files]
    findings = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)
    codes = {path: [f"{path.name}: {f['code']}" for f in findings if f["filename"] == str(path)] for path in files}
    found = {path: [code for code in codes[path] if code != EXPECTED] for path in files}
    return row("security rules of ruff (flake8-bandit), each file of the program", [*found.values()])


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))

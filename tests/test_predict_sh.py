"""The one command, run by dash from anywhere, with and without what it needs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scans import save_ct

ROOT = Path(__file__).resolve().parents[1]
SHELL = shutil.which("dash") or "/bin/sh"
TOOLS = ("dirname", "cmp", "cp", "mkdir", "cat", "chmod", "rm")


def predict(script, *arguments, cwd, python=None, path=None):
    environment = {name: value for name, value in os.environ.items() if name != "FLARE_PYTHON"}
    if python:
        environment["FLARE_PYTHON"] = str(python)
    if path:
        environment["PATH"] = str(path)
    given = [str(argument) for argument in arguments]
    return subprocess.run([SHELL, str(script), *given], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    """A copy of the script with a program that shows what it is given; names with spaces."""
    folder = tmp_path / "a tree"
    (folder / "app").mkdir(parents=True)
    for name in ("predict.sh", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "app" / "__init__.py").touch()
    (folder / "app" / "__main__.py").write_text(
        "import os, sys\nfor part in [os.getcwd(), *sys.argv[1:]]:\n    print(part)\nsys.exit(7)\n"
    )
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / "else where"
    folder.mkdir()
    return folder


def test_a_real_run_from_another_folder_with_relative_inputs(elsewhere, weights_path):
    save_ct(elsewhere / "my scans" / "a 1_0000.nii.gz")
    run = predict(ROOT / "predict.sh", "--inputs", "my scans", "--outputs", "my masks", "--weights", weights_path,
                  "--device", "cpu", cwd=elsewhere, python=sys.executable)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (elsewhere / "my masks" / "a 1.nii.gz").exists()
    assert "1 done, 0 failed" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("script", ["../a tree/predict.sh", "{tree}/predict.sh"])
@pytest.mark.parametrize("arguments", [[], ["--inputs", "a b", "", "*", "$HOME", "c\nd", "'"]])
def test_arguments_and_exit_status_are_passed_on_and_nothing_is_added(tree, elsewhere, script, arguments):
    run = predict(script.format(tree=tree), *arguments, cwd=elsewhere, python=sys.executable)
    assert (run.returncode, run.stderr) == (7, "")
    assert run.stdout == "\n".join([str(elsewhere), *arguments]) + "\n"
    assert not (tree / ".venv").exists()


def test_a_folder_named_app_where_the_caller_stands_is_not_ours(tree, elsewhere):
    for name in ("app/__init__.py", "app/__main__.py", "runpy.py", "logging.py"):
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text("raise SystemExit('the caller\\'s')")
    run = predict(tree / "predict.sh", "x", cwd=elsewhere, python=sys.executable)
    assert (run.returncode, run.stdout) == (7, f"{elsewhere}\nx\n")
    run = predict(ROOT / "predict.sh", "--help", cwd=elsewhere, python=sys.executable)
    assert run.returncode == 0
    assert "Segment 13 abdominal organs" in run.stdout


# A bare machine: a PATH of our own making


@pytest.fixture
def bare_path(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def fake_python(path, version_ok=True, venv_ok=True, pip_ok=True, locks=True):
    """A python3 whose venv is itself and whose pip notes that it was called; it runs the program with the real one."""
    path.write_text(
        f"""#!{SHELL}
case "$*" in
  *version_info*) exit {0 if version_ok else 1} ;;
  *fcntl.flock*) {f'exec "{sys.executable}" "$@"' if locks else 'echo "OSError: [Errno 38]" >&2; exit 1'} ;;
  *ensurepip*) exit {0 if venv_ok else 1} ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; chmod +x "$3/bin/python" ;;
  "-m pip "*) echo "pip $*" >> "{path.parent}/calls"; exit {0 if pip_ok else 1} ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""
    )
    path.chmod(0o755)


def calls(bare_path):
    file = bare_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_a_newer_python_beside_an_old_one_is_found(tree, elsewhere, bare_path):
    fake_python(bare_path / "python3", version_ok=False)
    fake_python(bare_path / "python3.12")
    assert predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path).returncode == 7


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (None, "Python 3.10 or newer is needed (Debian, Ubuntu: apt install python3 python3-venv)"),
        ({"version_ok": False}, "Python 3.10 or newer is needed (Debian, Ubuntu: apt install python3 python3-venv)"),
        ({"venv_ok": False}, "python3 has no venv module (Debian, Ubuntu: apt install python3-venv)"),
    ],
)
def test_the_package_that_is_missing_is_named(tree, elsewhere, bare_path, python, said):
    if python:
        fake_python(bare_path / "python3", **python)
    run = predict(tree / "predict.sh", cwd=elsewhere, path=bare_path)
    assert (run.returncode, run.stderr) == (2, f"predict.sh: {said}\n")


def test_the_pins_are_installed_once_and_again_when_they_change(tree, elsewhere, bare_path):
    fake_python(bare_path / "python3")
    for _ in range(2):
        run = predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path)
        assert (run.returncode, run.stdout) == (7, f"{elsewhere}\nx\n")
        (call,) = calls(bare_path)
    assert call.endswith(f"-r {tree}/requirements.txt")
    assert run.stderr == ""
    (tree / "requirements.txt").write_text("another==1.0\n")
    run = predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path)
    assert run.stderr == "predict.sh: first run: installing the packages of requirements.txt into .venv\n"
    assert len(calls(bare_path)) == 2


def test_an_installation_that_fails_is_said_and_tried_again(tree, elsewhere, bare_path):
    fake_python(bare_path / "python3", pip_ok=False)
    run = predict(tree / "predict.sh", cwd=elsewhere, path=bare_path)
    assert run.returncode == 2
    assert run.stderr.endswith("predict.sh: the packages could not be installed, see above\n")
    assert run.stdout == ""
    fake_python(bare_path / "python3")
    assert predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path).returncode == 7


def test_packages_of_a_python_that_is_gone_are_named(tree, elsewhere, bare_path):
    """The system's Python was replaced, or another machine of the cluster installed them with its own."""
    fake_python(bare_path / "python3")
    assert predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path).returncode == 7
    (tree / ".venv" / "bin" / "python").unlink()
    run = predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"predict.sh: {tree}/.venv does not work here: remove it and run again\n"


def test_with_no_arguments_on_a_bare_machine_it_segments_the_example(tree, elsewhere, bare_path):
    fake_python(bare_path / "python3")
    run = predict(tree / "predict.sh", cwd=elsewhere, path=bare_path)
    example = ["--inputs", f"{tree}/examples", "--outputs", f"{tree}/outputs", "--preview"]
    assert run.stdout.splitlines() == [str(elsewhere), *example]
    assert list((ROOT / "examples").glob("*_0000.nii.gz"))


def slow_python(path, seconds):
    """A `fake_python` whose pip takes its time and says when it is done."""
    fake_python(path)
    path.write_text(path.read_text().replace("; exit 0 ;;", f"; sleep {seconds}; echo done >> {path.parent}/calls ;;"))
    (path.parent / "sleep").symlink_to(shutil.which("sleep"))


def start(script, cwd, path):
    environment = {"PATH": str(path)}
    return subprocess.Popen([SHELL, str(script), "x"], cwd=cwd, env=environment, stdout=-1, stderr=-1, text=True)


def test_of_two_first_runs_at_once_one_installs_and_the_other_waits(tree, elsewhere, bare_path):
    slow_python(bare_path / "python3", seconds=1)
    runs = [start(tree / "predict.sh", elsewhere, bare_path) for _ in range(3)]
    results = [(*run.communicate(timeout=60), run.returncode) for run in runs]
    assert [(out, status) for out, _, status in results] == [(f"{elsewhere}\nx\n", 7)] * 3, results
    assert sorted("first run" in err for _, err, _ in results) == [False, False, True]
    assert len(calls(bare_path)) == 2  # one pip, and its end


def test_where_files_cannot_be_locked_it_installs_all_the_same(tree, elsewhere, bare_path):
    fake_python(bare_path / "python3", locks=False)
    run = predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path)
    assert (run.returncode, run.stdout) == (7, f"{elsewhere}\nx\n")
    assert "Errno" not in run.stderr and len(calls(bare_path)) == 1


def test_a_first_run_that_is_killed_holds_up_no_other(tree, elsewhere, bare_path):
    slow_python(bare_path / "python3", seconds=600)
    killed = subprocess.Popen([SHELL, str(tree / "predict.sh"), "x"], cwd=elsewhere, env={"PATH": str(bare_path)},
                              stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    for _ in range(6000):
        if calls(bare_path):
            break
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    fake_python(bare_path / "python3")
    run = predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path)
    assert (run.returncode, run.stdout) == (7, f"{elsewhere}\nx\n")
    assert len(calls(bare_path)) == 2


def test_the_lock_is_given_back_before_the_program_starts(tree, elsewhere, bare_path):
    fake_python(bare_path / "python3")
    (tree / "app" / "__main__.py").write_text("import os\ntry:\n    os.fstat(9)\nexcept OSError:\n    print('free')\n")
    assert predict(tree / "predict.sh", "x", cwd=elsewhere, path=bare_path).stdout == "free\n"

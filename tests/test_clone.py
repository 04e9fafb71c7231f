"""What a clone holds, where git is set to turn line ends into Windows's (core.autocrlf)."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments):
    return subprocess.run(["git", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def windows_clone(tmp_path_factory):
    try:
        git("-C", ROOT, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    folder = tmp_path_factory.mktemp("clone")
    git("clone", "--quiet", "--shared", "-c", "core.autocrlf=true", ROOT, folder)
    return folder


def test_text_has_no_carriage_return_and_the_rest_is_as_committed(windows_clone):
    assert b"\r" not in (windows_clone / "predict.sh").read_bytes()
    ends = {tuple(line.split()[:3]) for line in git("-C", windows_clone, "ls-files", "--eol").splitlines()}
    assert ends == {("i/lf", "w/lf", "attr/text=auto"), ("i/-text", "w/-text", "attr/-text")}

"""What is installed is what was pinned: the locks of the image, and the look-up of their packages in advisories."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app import __version__

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {path.stem.removeprefix("torch-"): path for path in sorted((ROOT / "locks").glob("*.txt"))}
IMAGE = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux"}
ENTRY = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.+]+)(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def pins(version):
    """{name: version} of a lock."""
    return {canonicalize_name(entry["name"]): entry["version"] for entry in ENTRY.finditer(LOCKS[version].read_text())}


def wanted():
    """{name: version} of requirements.txt, as the image's Python reads it."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    held = [one for one in requirements if not one.marker or one.marker.evaluate(IMAGE)]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in held}


@pytest.mark.parametrize("version", LOCKS)
def test_a_lock_holds_versions_with_hashes_and_nothing_else(version):
    text = LOCKS[version].read_text()
    assert len(pins(version)) > len(wanted())
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    assert rest == []  # no index, no option, no package without a hash


@pytest.mark.parametrize("version", LOCKS)
def test_a_lock_has_what_requirements_txt_asks_for(version):
    """After a change of requirements.txt: `sh locks/compile.sh`."""
    assert wanted() | {"torch": version} == {name: pins(version)[name] for name in wanted()}


def test_the_cpu_build_has_no_package_that_is_not_audited():
    """The advisories know no `+cpu`; locks/audit.sh looks the CUDA builds up."""
    assert pins("2.13.0+cpu").items() - {("torch", "2.13.0+cpu")} <= pins("2.13.0").items()


def test_the_default_build_is_the_one_of_requirements_txt():
    (version,) = re.findall(r"^ARG TORCH_VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert version == wanted()["torch"]
    assert f"{version}+cpu" in LOCKS


def test_the_image_and_the_changelog_have_the_version_of_the_program():
    (label,) = re.findall(r'image\.version="(.*)"', (ROOT / "Dockerfile").read_text())
    latest = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert label == latest == __version__


def test_the_drivers_table_has_the_cuda_generation_of_each_lock():
    page = (ROOT / "docs" / "images.md").read_text()
    rows = re.findall(r"^\| (2[\d.]+)(?: \(default\))? \| (\d+\.\d+) \|", page, re.M)
    assert {version for version, _ in rows} == {version for version in LOCKS if "+" not in version}
    for version, cuda in rows:
        (runtime,) = (pin for name, pin in pins(version).items() if name.startswith("nvidia-cuda-runtime"))
        assert runtime.startswith(f"{cuda}.")


def test_all_locks_are_made_when_none_is_named():
    (versions,) = re.findall(r"set -- (.*?)  #", (ROOT / "locks" / "compile.sh").read_text())
    assert set(versions.split()) == set(LOCKS)


def test_the_image_installs_nothing_without_a_hash():
    installs = re.findall(r"pip install.*", (ROOT / "Dockerfile").read_text())
    assert installs and all("--require-hashes" in line for line in installs)


# locks/audit.sh, with a pip-audit of our own


def audit(tmp_path, known):
    """Run with advisories for the pins that begin as `known`; as pip-audit does, what is not found passes."""
    stub = tmp_path / "python"
    stub.write_text(f"""#!/bin/sh
for file; do :; done
for pin in {" ".join(known)}; do
  if grep -q "^$pin" "$file"; then echo "$pin CVE-1-1"; exit 1; fi
done
""")
    stub.chmod(0o755)
    (tmp_path / "locks").mkdir()
    for path in (ROOT / "locks").iterdir():
        shutil.copy(path, tmp_path / "locks")
    environment = os.environ | {"FLARE_PYTHON": str(stub)}
    return subprocess.run(
        ["sh", str(tmp_path / "locks" / "audit.sh")], env=environment, capture_output=True, text=True, check=False
    )


def test_advisories_that_cannot_be_had_are_not_none(tmp_path):
    run = audit(tmp_path, known=[])
    assert run.returncode == 3
    assert "SKIPPED" in run.stderr and run.stdout == ""


def test_every_cuda_lock_is_looked_up(tmp_path):
    run = audit(tmp_path, known=["jinja2==2.4.1"])
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [f"locks/torch-{version}.txt" for version in LOCKS if "+" not in version]


def test_a_locked_package_with_an_advisory_is_a_failure(tmp_path):
    run = audit(tmp_path, known=["jinja2==2.4.1", "torch==2.10.0"])  # in one lock, which is not the last
    assert run.returncode == 1
    assert "torch==2.10.0 CVE-1-1" in run.stdout

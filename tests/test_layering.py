"""What may import what: the program stands alone, its stages know nothing of each other, and it starts quickly."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "app").glob("*.py"))}
PACKAGES = {"torch", "SimpleITK", "numpy", "scipy", "pynvml", "psutil"}  # of requirements.txt

# Data flows volume -> preprocess -> segment(network, weights) -> postprocess -> (measure -> quality, volume);
# `pipeline` joins the stages.
MAY_IMPORT = {
    "labels": set(),
    "nifti": set(),
    "monitor": set(),
    "cases": set(),
    "progress": set(),
    "readahead": set(),
    "record": set(),
    "preprocess": set(),
    "resample": set(),
    "device": set(),
    "textheader": {"nifti"},
    "volume": {"nifti", "textheader"},
    "network": {"labels"},
    "postprocess": {"labels"},
    "measure": {"labels"},
    "plausible": set(),
    "quality": {"labels", "measure", "plausible"},
    "preview": {"labels"},
    "fuse": {"network"},
    "body": {"network"},
    "weights": {"fuse", "labels", "network", "preprocess"},
    "segment": {"body", "device", "network", "postprocess", "preprocess", "weights"},
    "pipeline": set(MODULES)
    - {"__main__", "body", "device", "fuse", "network", "plausible", "progress", "readahead", "record"},
    "__main__": {"cases", "device", "monitor", "pipeline", "progress", "readahead", "record", "segment", "volume"}
    | {"weights"},
    "__init__": set(),
}


def imported(tree):
    """Dotted names of all that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_is_listed():
    assert set(MODULES) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_outside_the_image_is_imported(module):
    outside = {name.partition(".")[0] for name in imported(MODULES[module])} - set(sys.stdlib_module_names)
    assert outside <= PACKAGES | {"app"}


@pytest.mark.parametrize("module", MODULES)
def test_stages_do_not_import_each_other(module):
    inside = {name.split(".")[1] for name in imported(MODULES[module]) if name.startswith("app.")}
    assert inside <= MAY_IMPORT[module]


def test_requirements_are_what_is_imported():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    assert pinned == PACKAGES - {"pynvml"} | {"nvidia-ml-py"}


def test_the_command_line_starts_without_torch_and_simpleitk():
    """They take seconds, in which the first CT can be read."""
    code = "import json, sys, app.__main__; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert "app" in loaded
    assert not loaded & {"torch", "SimpleITK", "scipy", "training", "evaluation"}

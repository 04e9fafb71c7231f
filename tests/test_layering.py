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

# Data flows ct -> preprocess -> segment(network, weights) -> postprocess -> maskfile: `inference` joins what is done in
# memory, `pipeline` puts files at both ends.
MAY_IMPORT = {
    # no module of ours
    **dict.fromkeys(("cpus", "errors", "formats", "gdcm", "geometry", "labels"), ""),
    **dict.fromkeys(("device", "preprocess", "progress", "readahead", "resample", "look", "slabs"), ""),
    # what a run costs, and its record
    **dict.fromkeys(("flare_figures", "gpu_memory", "process_tree", "runjson", "sampler"), ""),
    "monitor": "flare_figures gpu_memory process_tree sampler",
    "record": "runjson",
    # the mask
    "measure": "labels",
    "plausible": "",
    "quality": "labels measure plausible",
    # reading and writing
    "dicomheader": "errors",
    "dicomgrid": "dicomheader errors geometry",
    "dicompixels": "dicomgrid dicomheader errors gdcm",
    "dicomseries": "dicomgrid dicomheader errors",
    "dicomvolume": "dicomgrid dicomheader dicompixels dicomseries errors gdcm geometry maskheader stream volume",
    "cases": "dicomheader dicomseries errors formats record",
    "stream": "errors",
    "niftifields": "errors",
    "maskheader": "geometry niftifields",
    "nifti": "errors geometry maskheader niftifields",
    "textheader": "errors geometry maskheader nifti",
    "voxels": "errors nifti stream",
    "volume": "errors formats geometry nifti niftifields stream textheader voxels",
    "spacing": "errors geometry",
    "padding": "errors voxels",
    "hounsfield": "errors",
    "ct": "dicomseries dicomvolume errors hounsfield padding spacing volume",
    "maskfile": "errors geometry maskheader stream voxels",
    # the network
    "network": "labels",
    "postprocess": "labels",
    "preview": "labels",
    "fuse": "network",
    "body": "network",
    "quantise": "fuse network",
    "weights": "fuse labels network preprocess quantise",
    "slab_logits": "look network postprocess preprocess slabs",
    "inference": "look postprocess preprocess resample slabs",
    "segment": "body device inference network postprocess slab_logits slabs weights",
    # all together
    "pipeline": "cases geometry labels maskfile measure monitor preview quality runjson segment volume",
    "options": "formats",
    "startup": "cpus device record runjson segment weights",
    "run": "cases ct device errors monitor pipeline progress readahead record runjson segment startup volume weights",
    "__main__": "cases errors maskfile monitor options progress record run",
    "__init__": "",
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
    inside = {name.split(".")[1] for name in imported(MODULES[module]) if name.startswith("app.")} & set(MODULES)
    assert inside <= set(MAY_IMPORT[module].split())


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

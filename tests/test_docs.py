"""What the Markdown files say exists: links, commands and options, names in the code, fields of run.json."""

import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.runjson import CaseEntry, RunContent
from tests.scans import save_ct, smooth_hu

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
PAGES = {name: (ROOT / name).read_text() for name in TRACKED if name.endswith(".md")}
OURS = ("app", "benchmarks", "evaluation", "tests", "training")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[tuple[str, str, str]]:
    """(page, module, arguments) of each command line in a block of shell code; `sh predict.sh` is `app`."""
    found = []
    for page, text in PAGES.items():
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
            for line in block.replace("\\\n", " ").replace("sh predict.sh", "python -m app").split("\n"):
                match = re.search(r"-m ([a-z][\w.]*)(.*)", line.partition("#")[0])
                if match and match[1].partition(".")[0] in OURS:
                    found.append((page, match[1], match[2]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path if path else ROOT / page).resolve().relative_to(ROOT).as_posix()
        assert any(name == target or name.startswith(f"{target}/") for name in TRACKED), link
        assert not anchor or anchor in anchors(PAGES[target]), link


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    for module in re.findall(r"python3? -m ([a-z][\w.]*\w)", PAGES[page]):
        assert find_spec(module), module
    for script in re.findall(r"\bsh (\w[\w/]*\.sh)", PAGES[page]):
        assert script in TRACKED, script


@pytest.mark.parametrize("module", sorted({module for _, module, _ in commands()}))
def test_options_exist(module, monkeypatch, capsys):
    used = [(page, flag) for page, name, arguments in commands() if name == module
            for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments.partition(" -- ")[0])]  # fmt: skip
    if not used:
        return
    package = find_spec(module).submodule_search_locations is not None
    place = f"{module}.__main__" if package else module
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, place, raising=False)
    with pytest.raises(SystemExit):
        runpy.run_module(place, run_name="__main__")
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    assert not [(page, flag) for page, flag in used if flag not in known]


@pytest.mark.parametrize("page", PAGES)
def test_names_stand_in_the_files_they_are_said_to(page):
    """`path.py` as a link, then a `name`: a function, class or constant of that file, or a method of its class."""
    for link, dotted in re.findall(r"`\]\(([^)]*\.py)\)\s+`([A-Za-z_][\w.]*)`", PAGES[page]):
        text = ((ROOT / page).parent / link).read_text()
        for name in dotted.split("."):
            assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b.* = ", text, re.M), (link, name)


def test_every_field_of_run_json_is_described(tmp_path, run_app):
    save_ct(tmp_path / "in" / "x.nii.gz", smooth_hu((2, 48, 64)))
    assert run_app("--inputs", tmp_path / "in", "--outputs", tmp_path / "out").status == 0
    (run,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("logs/*/run.json"))
    (folder,) = (tmp_path / "out").glob("logs/*")
    columns = (folder / "monitor.csv").read_text().split("\n")[0].strip().split(",")
    described = set(re.findall(r"`(\w+)`", PAGES["docs/formats.md"]))
    assert set(run) == set(RunContent.__annotations__)
    assert set(run["cases"][0]) == set(CaseEntry.__annotations__) - {"series_number"}  # not DICOM
    assert {*run, *run["cases"][0], *run["monitor"], *run["cases"][0]["seconds"], *columns} <= described

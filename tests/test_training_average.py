import dataclasses

import pytest
import torch

from tests.training_data import config, phantom_store
from training import checkpoint, export, model_card
from training.average import average
from training.train import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, its exported weights, and two runs of another step that went on from these. Their folder and settings."""
    folder = tmp_path_factory.mktemp("runs")
    phantom_store(folder / "store", 32, [12, 17, 24, 32], 2)
    first = config(folder / "store", folder / "first", epochs=0.5, branches=1, lambda_=0.0)
    Run(first).train()
    export.write(export.export(folder / "first" / checkpoint.FILE_NAME), folder / "start.pt")
    for seed in (1, 2):
        start = {"out": str(folder / f"seed{seed}"), "seed": seed, "init": str(folder / "start.pt")}
        Run(dataclasses.replace(first, **start)).train()
    return folder, first


def paths(folder, *names):
    return [folder / name if name.endswith(".pt") else folder / name / checkpoint.FILE_NAME for name in names]


def test_every_weight_is_the_mean(runs):
    members = paths(runs[0], "seed1", "start.pt", "seed2")
    mean = average(members)
    branches = [checkpoint.load_branches(path)[0][0] for path in members]
    assert mean["branches"][0].keys() == branches[0].keys() and len(mean["branches"]) == 1
    apart = 0
    for name, value in mean["branches"][0].items():
        if value.is_floating_point():
            expected = sum(branch[name].double() for branch in branches) / 3
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
            apart += not torch.allclose(value, branches[0][name].float(), rtol=1e-4)
    assert apart > 50  # the runs did go different ways


def test_a_mean_is_exported_and_says_what_it_is(runs, tmp_path):
    folder, settings = runs
    checkpoint.save(average(paths(folder, "seed2", "seed1", "start.pt")), tmp_path / "mean.pt")
    training = export.export(tmp_path / "mean.pt")["info"]["training"]
    assert [stage.get("mean_of") for stage in training["stages"]] == [None, ["seed 1", "seed 2", "the stage before"]]
    assert "| mean of the weights of | - | seed 1, seed 2, the stage before |" in model_card.stage_table(
        training["stages"]
    )
    run = Run(dataclasses.replace(settings, out=str(tmp_path / "next"), init=str(tmp_path / "mean.pt")))
    assert run.stages == training["stages"]


def test_branches_are_not_mixed(runs, tmp_path):
    """Two branches come from two initialisations: whichever validated better, each has a mean of its own."""
    folder, settings = runs
    two = {"branches": 2, "init": f"{folder / 'start.pt'},{folder / 'start.pt'}"}
    files = []
    for seed, better in ((1, 0), (2, 1)):
        run = Run(dataclasses.replace(settings, out=str(tmp_path / str(seed)), seed=seed, **two))
        for k, branch in enumerate(run.branches):
            torch.nn.init.constant_(branch.classifier.bias, 10 * k + seed)
        run.validation = {"step": 0, "dsc": [{"mean": float(k == better)} for k in range(2)]}
        run.save()
        files.append(run.path)
    means = [branch["classifier.bias"].unique().tolist() for branch in average(files)["branches"]]
    assert means == [[1.5], [11.5]]
    state = checkpoint.load(files[0])
    checkpoint.save({**state, "branches": state["branches"][:1]}, tmp_path / "one.pt")
    with pytest.raises(ValueError, match="different networks"):
        average([files[1], tmp_path / "one.pt"])


def test_only_runs_of_one_stage_have_a_mean(runs, tmp_path):
    seed1, seed2, first = paths(runs[0], "seed1", "seed2", "first")
    with pytest.raises(ValueError, match="two files at least"):
        average([seed1])
    with pytest.raises(ValueError, match="one run twice: seed 1, seed 1"):
        average([seed1, seed1])
    with pytest.raises(ValueError, match="started from Kaiming"):
        average([first, first])
    other, state = tmp_path / "other.pt", checkpoint.load(seed2)
    for change, cause in (
        ({"config": {**state["config"], "lr": 0.5}}, "other.pt .*neither runs of one stage"),
        ({"data": {}}, "neither runs of one stage"),
        ({"step": 9}, "neither runs of one stage"),
        ({"stages": []}, "neither runs of one stage"),  # from Kaiming: its weights have nothing to do with the others'
        ({"branches": [{}]}, "different networks"),
    ):
        checkpoint.save({**state, "optimisers": [], **change}, other)
        with pytest.raises(ValueError, match=cause):
            average([seed1, other])
    for content in ({"format": 1}, torch.zeros(3)):
        torch.save(content, other)
        with pytest.raises(ValueError, match=r"other.pt is neither a checkpoint"):
            average([seed1, other])
    whole = seed2.read_bytes()
    for content in (b"", b"# Not torch's", whole[: len(whole) // 2]):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"other.pt is damaged"):
            average([seed1, other])
    assert average([first, seed1])["mean_of"] == ["seed 1", "the stage before"]
    slower = {**state, "config": {**state["config"], "stop_after_s": 540.0, "log_every": 5, "workers": 9}}
    checkpoint.save(slower, other)
    assert average([seed1, other])["mean_of"] == ["seed 1", "seed 2"]
    checkpoint.save({**state, "data": {**state["data"], "annotated": [1, 12]}}, other)
    with pytest.raises(ValueError, match=r"other.pt learned other organs than .*start.pt knows"):
        average([*paths(runs[0], "start.pt"), other])

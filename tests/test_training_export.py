import dataclasses
import hashlib
import json
import subprocess

import numpy as np
import pytest
import torch

from app.labels import ORGANS
from app.network import DeepLabV3Plus
from app.weights import load_weights
from evaluation.output import write_json
from evaluation.paper import TABLE_3
from tests.training_data import add_case, config, phantom_store
from training import checkpoint, crossvalidate, export, model_card, results, table3
from training.ensemble import Ensemble
from training.phantom import phantom
from training.train import Run

WITHOUT_DUODENUM = tuple(label for label in range(1, 14) if label != 12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two branches, validated on p0; no case annotates the duodenum. Its folder."""
    folder = tmp_path_factory.mktemp("trained")
    for k in range(2):
        hu, labels, spacing_mm = phantom(k, 32)
        labels[labels == 12] = 255
        planes = [12, 17, 24, 32]
        add_case(folder / "store", f"p{k}", hu[planes], labels[planes], spacing_mm, WITHOUT_DUODENUM)
    phantom_store(folder / "more", 32, [17], 0, 3)
    (folder / "more/p2").rename(folder / "store/p2")
    (folder / "folds.json").write_text('[["p0"], ["p1"]]')
    Run(config(folder / "store", folder / "run", fold=0, folds=str(folder / "folds.json"), epochs=1)).train()
    return folder


@pytest.fixture
def path(trained):
    return trained / "run" / checkpoint.FILE_NAME


def test_exported_weights_are_the_branch_that_validated_best(trained, path, tmp_path):
    state = checkpoint.load(path)
    state["validation"]["dsc"][0]["mean"], state["validation"]["dsc"][1]["mean"] = 0.1, 0.2
    checkpoint.save(state, tmp_path / "checkpoint.pt")
    file = tmp_path / "weights" / "w.pt"
    digest = export.write(export.export(tmp_path / "checkpoint.pt"), file)

    assert subprocess.run(["sha256sum", "-c", "w.pt.sha256"], cwd=file.parent, capture_output=True).returncode == 0
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert file.stat().st_size < 32e6 and len(list(file.parent.iterdir())) == 2

    weights = load_weights(file)
    assert weights.sha256 == digest and weights.frame_px == 32 and weights.switched_off == (12,)
    assert weights.spacing_mm == (12.5, 12.5) and weights.slice_mm == 5
    network = weights.network(torch.device("cpu"), torch.float32)
    branch = DeepLabV3Plus().eval()
    branch.load_state_dict(state["branches"][1])
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        ours, theirs = network(images), branch(images)
    kept = [0, *WITHOUT_DUODENUM]
    assert (ours[:, kept] - theirs[:, kept]).abs().max() < 0.01 * theirs.abs().max()
    assert (ours[:, 12] < -9000).all()  # can never win


def test_info_is_plain_and_says_where_the_weights_come_from(path, tmp_path):
    content = export.export(path)
    torch.save(content, tmp_path / "w.pt")
    info = torch.load(tmp_path / "w.pt", weights_only=True)["info"]
    assert list(info) == ["classes", "window_hu", "frame_px", "spacing_mm", "slice_mm", "switched_off", "training"]
    assert info["classes"] == ["Background", *(organ.abbreviation for organ in ORGANS)]
    training = info["training"]
    assert (training["cases"], training["patients"], training["steps"]) == (2, ["p1", "p2"], 1)
    assert training["validation_dsc"]["mean"] == checkpoint.load(path)["validation"]["dsc"][training["branch"]]["mean"]
    assert training["config"]["lr"] == 0.02 and training["date"] and training["commit"]
    assert str(tmp_path.parent.parent) not in json.dumps(info)  # no path of this machine


def test_branch_can_be_chosen_and_must_exist(path):
    weight = "classifier.weight"
    first, second = (export.export(path, branch)["state_dict"][weight] for branch in range(2))
    assert first.dtype == torch.float16 and not torch.equal(first, second)
    assert not first[12].any()
    with pytest.raises(ValueError, match="branches 0 to 1, not 2"):
        export.export(path, 2)


def test_what_float16_cannot_hold_is_an_error(path, tmp_path):
    state = checkpoint.load(path)
    for branch in state["branches"]:
        branch["trunk.stem.0.0.weight"][0, 0, 0, 0] = 1e6
    checkpoint.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"trunk\.stem"):
        export.export(tmp_path / "checkpoint.pt")
    torch.save({"format": 1}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        export.export(tmp_path / "w.pt")


def test_training_goes_on_from_exported_weights(trained, path, tmp_path):
    export.write(export.export(path, 0), tmp_path / "w.pt")
    settings = config(trained / "store", tmp_path / "next", init=str(tmp_path / "w.pt"), branches=1, lambda_=0.0)
    run = Run(settings)
    classifier = run.branches[0].classifier
    assert classifier.bias.min() > -100 and classifier.weight[12].any()  # the duodenum can be learned again
    exact = checkpoint.load(path)["branches"][0]
    torch.testing.assert_close(run.branches[0].state_dict()["aspp.project.0.0.weight"],
                               exact["aspp.project.0.0.weight"], rtol=1e-3, atol=1e-6)  # fmt: skip
    run.save()
    stages = export.export(run.path)["info"]["training"]["stages"]
    assert [stage["step"] for stage in stages] == [1, 0]


def test_crossvalidation_scores_only_patients_never_seen(trained, path, tmp_path):
    entry = crossvalidate.score(path, None, torch.device("cpu"))
    state = checkpoint.load(path)
    assert state["validation"]["step"] == 1 and len(state["validation"]["dsc"]) == 2
    assert state["data"]["validation"] == ["p0"] and list(path.parent.glob("events*"))
    assert entry["fold"] == 0 and list(entry["dsc"]) == ["p0"]
    expected = {k: v for k, v in state["validation"]["dsc"][entry["branch"]].items() if k != "mean"}
    assert entry["dsc"]["p0"] == pytest.approx(expected) and "Duodenum" not in expected

    everything = {**state, "config": {**state["config"], "fold": -1}}
    checkpoint.save(everything, tmp_path / "all.pt")
    with pytest.raises(ValueError, match="nobody is held out"):
        crossvalidate.score(tmp_path / "all.pt", None, torch.device("cpu"))
    # A run that validates on p1 but started from one that was trained on p1.
    leaking = {**state, "config": {**state["config"], "fold": 1}, "stages": checkpoint.stages(state)}
    leaking["data"] = {**state["data"], "patients": ["p0", "p2"]}
    checkpoint.save(leaking, tmp_path / "leak.pt")
    with pytest.raises(ValueError, match="p1 of fold 1 were trained on"):
        crossvalidate.score(tmp_path / "leak.pt", None, torch.device("cpu"))
    folds = {"fold": 1, "folds": str(trained / "folds.json")}
    with pytest.raises(ValueError, match="p1 of fold 1 were trained on"):
        Run(config(trained / "store", tmp_path / "next", init=str(path), **folds))


def test_hand_worked_summary():
    organs = results.summary([{"Liver": 0.5, "RK": 0.4}, {"Liver": 0.7}])
    assert organs["Liver"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.02**0.5), "n": 2}
    assert organs["RK"] == {"mean": 0.4, "std": None, "n": 1}
    assert organs["mean"] == {"mean": pytest.approx(0.5), "n": 2}  # mean of the organs' means


def test_model_card_says_what_the_files_say(path, tmp_path):
    export.write(export.export(path), tmp_path / "w.pt")
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    rows = [{name: 0.8 for name in TABLE_3 if name != "Duodenum"}]
    fold = {**crossvalidate.score(path, None, torch.device("cpu")), "dsc": {"p0": rows[0]}}
    scores = {**results.provenance(torch.device("cpu")), "organs": results.summary(rows), "folds": [fold]}
    text = model_card.card(content, "abc123", "w.pt", scores)
    assert "abc123" in text and "not eligible\nfor FLARE22's ranking" in text
    assert "| Liver | 0.800 | 0.956 | 0.938 |" in text and "| Duodenum |" not in text
    assert "| **Average** | **0.800** | **0.806** | **0.725** |" in text
    assert "because no training case annotates them: duodenum" in text
    assert "the same recipe as the shipped weights (1 steps): fold 0 1 steps" in text
    older = {key: value for key, value in fold["stages"][0]["config"].items() if key != "drawn_organs"}
    before = {**scores, "folds": [{**fold, "stages": [{**fold["stages"][0], "config": older}]}]}
    assert "the same recipe" in model_card.card(content, "", "", before)  # a setting that was its default is none
    older["cutmix"] = False
    assert "another recipe" in model_card.card(content, "", "", before)
    assert "| cutmix | True |" in text and "| fold |" not in text and "| without labels |" not in text
    assert "| other cases; not recorded | 1 | 1 |" in text
    content["info"]["training"]["patients"] += ["quality_phantom_0000"]
    assert "\n- 2 patients are few" in model_card.card(content, "", "", scores)
    other = {**scores, "folds": [{**fold, "stages": fold["stages"] * 2}]}
    text = model_card.card(content, "", "", other)
    assert "another recipe than the shipped weights (1 steps): fold 0 1 + 1 steps" in text


@pytest.fixture
def table3_base(trained, tmp_path):
    add_case(trained / "store", "p3", *phantom(3, 32))
    hu, labels, spacing_mm = phantom(4, 32)
    add_case(trained / "store", "head", hu[:1], np.zeros_like(labels[:1]), spacing_mm)
    return config(trained / "store", tmp_path / "runs", fold=0, folds=str(trained / "folds.json"), epochs=1)


def test_arms_of_table_3_differ_in_what_they_compare_alone(table3_base):
    arms = [dataclasses.asdict(table3.arm_config(table3_base, ["p1"], arm, 2)) for arm in table3.ARMS]
    for arm, settings in zip(arms, table3.ARMS.values(), strict=True):
        assert {key for key in arm if arm[key] != arms[0][key]} == ({*settings, "out"} if settings else set())
    assert arms[0]["seed"] == 2 and arms[0]["without_labels"] == "p0,p3" and arms[0]["lambda_"] == 0.5
    assert table3.arm_config(table3_base, [], "with_unlabelled", 2).without_labels == ""
    for patient, fold, message in (("p0", 0, "no labels to train on of p0"), ("p1", -1, "nobody would validate")):
        with pytest.raises(ValueError, match=message):
            table3.arm_config(dataclasses.replace(table3_base, fold=fold), [patient], "with_unlabelled", 0)


def test_an_unfinished_run_is_not_scored(table3_base):
    one, two = (dataclasses.replace(table3_base, epochs=steps / 11) for steps in (1, 2))
    with pytest.raises(ValueError, match=r"at step 1, not at its end \(2\)"):
        table3.final_dsc(Run(dataclasses.replace(two, stop_after_s=1e-9)))
    assert len(table3.final_dsc(Run(two))["ensemble"]) == 12
    with pytest.raises(ValueError, match=r"at step 2, not at its end \(1\)"):  # asked to be shorter than it is
        table3.final_dsc(Run(one))


def test_table_3_of_a_run_by_the_clock(table3_base, tmp_path, monkeypatch):
    """All runs take as many steps as the first; stopped after two, it goes on with the third."""
    flags = "--train-s 0.5 --labelled-per-batch 2 --unlabelled-per-batch 2 --crop-px 32 --workers 0 --device cpu"
    flags += f" --folds {table3_base.folds}"
    command = f"table3 --store {table3_base.store} --labelled p1 --runs {tmp_path}/runs --seeds 0"
    command += f" -o {tmp_path}/table3.json"
    trained_arms, written = [], []
    monkeypatch.setattr(Run, "train", lambda run, train=Run.train: (trained_arms.append(run), train(run)))
    monkeypatch.setattr(
        table3, "write_json", lambda file, result: (written.append([*result][4:]), write_json(file, result))
    )
    for arms in (["with_unlabelled", "without_unlabelled"], list(table3.ARMS)):
        monkeypatch.setattr("sys.argv", [*command.split(), "--arms", *arms, "--", *flags.split()])
        table3.main()
    result = json.loads((tmp_path / "table3.json").read_text())
    steps = {result[arm]["steps"] for arm in table3.ARMS}
    assert steps == {trained_arms[0].step} and trained_arms[0].step >= 1
    assert [run.config.lambda_ for run in trained_arms] == [0.5, 0, 0.5, 0, 0.5]
    assert [run.config.train_s for run in trained_arms] == [0.5, 0, 0.5, 0, 0]  # the others are told the steps
    arms = list(table3.ARMS)
    assert written == [arms[:1], arms[:2], arms[:1], arms[:2], arms]  # what is not there yet is not in the file
    assert result["with_unlabelled"]["data"]["unlabelled"] == ["p2", "p3"]
    assert list(result)[-3:] == list(table3.ARMS)
    both = result["strong_views"]["ensembles"]["0"]
    assert len(both) == 12 and both != result["strong_views"]["seeds"]["0"]


def test_an_ensemble_answers_with_the_mean_of_the_logits(path):
    states = checkpoint.load(path)["branches"]
    branches = [DeepLabV3Plus().eval() for _ in states]
    for branch, state in zip(branches, states, strict=True):
        branch.load_state_dict(state)
    images = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        mean = (branches[0].quarter_logits(images) + branches[1].quarter_logits(images)) / 2
        torch.testing.assert_close(Ensemble(branches).quarter_logits(images), mean)

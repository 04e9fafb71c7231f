"""The model card of a weights file: `python -m training.model_card WEIGHTS SCORES.json -o MODEL_CARD.md`.

Every figure comes from the two files; only the sentences are written here.
"""

import argparse
import dataclasses
import hashlib
import io
import json
from pathlib import Path

import torch

from app.labels import ORGANS
from app.weights import SLICE_MM
from evaluation.output import write_text
from evaluation.paper import TABLE_3
from evaluation.tables.accuracy import crossvalidation
from evaluation.tables.markdown import markdown
from training.config import OF_ONE_MACHINE, Config

PHANTOM = "quality_phantom"
# By the beginning of a case's name: source, licence.
SOURCES = {
    "btcv": ("BTCV / Synapse (Landman et al., 2015)", "registered access: research use, no redistribution"),
    "totalseg": ("TotalSegmentator (Wasserthal et al., 2023), test cases; labels are its model's", "Apache-2.0"),
    "acrin": ("TCIA ACRIN-FLT-Breast", "CC BY 3.0"),
    "cptac": ("TCIA CPTAC", "CC BY"),
    "lidc": ("TCIA LIDC-IDRI", "CC BY 3.0"),
    "tcga": ("TCIA TCGA-COAD", "CC BY 3.0"),
    "midrc": ("TCIA MIDRC-RICORD-1A", "CC BY-NC 4.0"),
    "crlm": ("TCIA Colorectal-Liver-Metastases", "CC BY 4.0"),
    "nsclc": ("TCIA NSCLC-Radiomics", "CC BY-NC 3.0"),
    "cmb": ("TCIA CMB-CRC", "CC BY 4.0"),
    "sts": ("TCIA Soft-tissue-Sarcoma (IBSI 1)", "CC BY 3.0"),
    PHANTOM: ("synthetic phantoms without organs, `training.phantom --quality`", "this project's"),
    "FLARE22": ("FLARE22 challenge", "the challenge's terms"),
}
OTHER_SOURCES = ("other cases", "not recorded")
NO_SETTINGS = {*OF_ONE_MACHINE, "fold"}  # of a recipe


def source(name: str) -> str:
    """Key into SOURCES for a case's name; "" if none fits."""
    return next((prefix for prefix in SOURCES if name.startswith(prefix)), "")


def data_table(stages: list[dict]) -> str:
    """Sources with licences, and how many cases of each trained with and without labels, over all stages."""
    counts: dict[str, dict[str, set]] = {}
    for stage in stages:
        for kind in ("labelled", "unlabelled"):
            for name in (stage["data"] or {}).get(kind, ()):
                counts.setdefault(source(name), {"labelled": set(), "unlabelled": set()})[kind].add(name)
    rows = []
    for key, kinds in counts.items():
        name, licence = SOURCES.get(key, OTHER_SOURCES)
        rows.append([f"{name}; {licence}", len(kinds["labelled"]), len(kinds["unlabelled"])])
    return markdown(["source; licence", "cases with labels", "cases without"], rows)


def stage_table(stages: list[dict]) -> str:
    """All settings, under the names that they had."""
    head = ["setting", *(f"stage {k + 1}" for k in range(len(stages)))]
    rows = [["steps", *(stage["step"] for stage in stages)]]
    recorded = dict.fromkeys(key for stage in reversed(stages) for key in stage["config"] if key not in NO_SETTINGS)
    settings = [
        [key.rstrip("_").replace("_", " "), *(stage["config"].get(key, "") for stage in stages)] for key in recorded
    ]
    rows += [row for row in settings if any(value != "" for value in row[1:])]
    if any(stage.get("mean_of") for stage in stages):
        rows.append(["mean of the weights of", *(", ".join(stage.get("mean_of") or ["-"]) for stage in stages)])
    return markdown(head, rows)


def recipe_note(shipped: list[dict], folds: list[dict]) -> str:
    """Whether the cross-validated networks were trained as the shipped one was."""
    defaults = dataclasses.asdict(Config())  # of settings that there were not yet

    def recipe(stages: list[dict]) -> list[tuple]:
        configs = [{**defaults, **stage["config"]} for stage in stages]
        settings = [{k: v for k, v in config.items() if k not in {*NO_SETTINGS, "seed"}} for config in configs]
        members = [len(stage.get("mean_of") or []) for stage in stages]
        return list(zip(settings, members, strict=True))

    def steps(stages: list[dict]) -> str:
        return " + ".join(str(stage["step"]) for stage in stages)

    same = all(recipe(fold["stages"]) == recipe(shipped) for fold in folds)
    recipes = "the same recipe as" if same else "another recipe than"
    note = f"Trained by {recipes} the shipped weights ({steps(shipped)} steps): "
    note += ", ".join(f"fold {fold['fold']} {steps(fold['stages'])} steps" for fold in folds)
    unfinished = [str(fold["fold"]) for fold in folds if fold["total_steps"] and fold["step"] < fold["total_steps"]]
    if unfinished:
        note += f"; stopped before the end of the schedule: fold {', '.join(unfinished)}"
    if any(stage["config"]["branches"] > 1 for fold in folds for stage in fold["stages"][-1:]):
        note += "; of two branches the one that is better on these very patients"
    return note + "."


def card(content: dict, sha256: str, file_name: str, scores: dict) -> str:
    """Markdown.

    Args:
        content: Of the weights file.
        sha256: Of the file.
        file_name: Its name.
        scores: Of training.crossvalidate.
    """
    info = content["info"]
    training, organs = info["training"], scores["organs"]
    parameters = sum(v.numel() for name, v in content["state_dict"].items() if not name.endswith("num_batches_tracked"))
    patients = sorted(case for fold in scores["folds"] for case in fold["dsc"])
    people = sum(source(name) != PHANTOM for name in training["patients"])
    below = [name for name in TABLE_3 if name in organs and organs[name]["mean"] < TABLE_3[name].with_unlabelled]
    off = [organ.name for organ in ORGANS if organ.label in info["switched_off"]]
    unscored = [organ.name for organ in ORGANS if organ.abbreviation not in organs]
    dice = training["config"]["dice_weight"]
    loss = "cross-entropy (eq. 1)" + (f" plus {dice:g} times soft Dice, which the paper does not have" if dice else "")
    cps = [stage["config"]["lambda_"] for stage in training["stages"]]
    cps_text = f"lambda {max(cps):g} (eq. 3)" if any(cps) else "not used: every stage has lambda 0"
    return f"""# Model card: {file_name}

DeepLabv3+ on a ResNet-18 for 13 abdominal organs in CT (Dong et al., "Cross Pseudo Method for Semi-supervised
Abdominal Organ Segmentation"), one branch, {parameters / 1e6:.1f} million parameters, float16. Written by
`python -m training.model_card`; no figure is typed by hand.

- SHA-256 `{sha256}`
- Code {training["commit"]}, checkpoint of {training["date"]}
- Input: axial slices, clipped to {info["window_hu"]} HU, z-scored with the clipped volume's statistics, of at least
  {info["frame_px"]} pixels a side, pixel spacing {info["spacing_mm"][0]:.2f} to {info["spacing_mm"][1]:.2f} mm,
  {info.get("slice_mm", SLICE_MM):g} mm thick (median of those trained on; thinner ones are averaged to that)
- Organs that it never gives, because no training case annotates them: {", ".join(off) or "none"}

**Research use only; not a medical device.** With these data, which are not the organizers', it is **not eligible
for FLARE22's ranking**.

## Training data

{data_table(training["stages"])}
No pretrained weights: branches start from Kaiming initialisation.

## Protocol

Loss: {loss}. Cross pseudo supervision: {cps_text}. Branch {training["branch"]} of the last stage.

{stage_table(training["stages"])}
## Accuracy

Cross-validated DSC of whole patients whom the scored networks never saw: {len(patients)} patients in
{len(scores["folds"])} fold(s) that were written down before training.

- {recipe_note(training["stages"], scores["folds"])}
- Stages, settings and filters were chosen on fold 0: its figures flatter a little.
- The shipped weights may have seen these patients. The paper's figures are of 50 others, FLARE22's validation set.

{crossvalidation(scores)}
Code {scores["commit"]}, {scores["date"]}.

## Limits

- Below the paper's figure: {", ".join(below) or "no organ that was scored"}.
- Not scored on held-out patients: {", ".join(unscored) or "no organ"}.
- {people} patients are few. Other contrast phases, scanners, children, operated or displaced
  organs are hardly among them; nobody should rely on a mask that nobody has looked at.
- Slices are segmented one by one: masks may be ragged along z.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.model_card", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("scores", type=Path, help="of training.crossvalidate")
    parser.add_argument("-o", "--output", type=Path, default=Path("weights/MODEL_CARD.md"))
    arguments = parser.parse_args()
    try:
        weights = arguments.weights.read_bytes()
        content = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        scores = json.loads(arguments.scores.read_text())
        sha256 = hashlib.sha256(weights).hexdigest()
        write_text(arguments.output, card(content, sha256, arguments.weights.name, scores))
    except (ValueError, OSError) as error:
        raise SystemExit(f"training.model_card: {error}") from None


if __name__ == "__main__":
    main()

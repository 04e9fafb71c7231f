"""Against the table of the organizers' published evaluation script."""

import itertools

from app.labels import NUM_CLASSES, ORGANS

FLARE22 = ["Liver", "RK", "Spleen", "Pancreas", "Aorta", "IVC", "RAG", "LAG"]
FLARE22 += ["Gallbladder", "Esophagus", "Stomach", "Duodenum", "LK"]


def test_numbers_and_abbreviations_are_the_organizers():
    assert [organ.label for organ in ORGANS] == list(range(1, 14))
    assert [organ.abbreviation for organ in ORGANS] == FLARE22
    assert NUM_CLASSES == 14


def test_names_fit_the_abbreviations():
    name = {organ.abbreviation: organ.name for organ in ORGANS}
    assert (name["RK"], name["LK"]) == ("right kidney", "left kidney")
    assert (name["RAG"], name["LAG"]) == ("right adrenal gland", "left adrenal gland")
    assert name["IVC"] == "inferior vena cava"
    for abbreviation in set(FLARE22) - {"RK", "LK", "RAG", "LAG", "IVC"}:
        assert name[abbreviation] == abbreviation.lower()


def test_colours_can_be_told_apart():
    assert all(0 <= value <= 255 for organ in ORGANS for value in organ.colour)
    for one, other in itertools.combinations(ORGANS, 2):
        difference = sum(abs(a - b) for a, b in zip(one.colour, other.colour, strict=True))
        assert difference >= 40, (one.name, other.name)

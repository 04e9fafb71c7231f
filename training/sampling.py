"""Which slices make the batch of a step: a function of the seed and the step alone.

Whichever process asks, and whether or not the run was interrupted, step s has the same slices and draws. Resuming
needs the step alone, and the processes of a distributed run take their parts of one batch.
"""

import numpy as np

from app.labels import NUM_CLASSES
from evaluation.organs import parse_organs
from training.augmentations import draw
from training.batch import Plan, Slices
from training.config import Config
from training.store import Case

MIN_ORGAN_PX = 8  # fewer pixels of an organ do not make a slice one of that organ


class Sampler:
    """Batches without pixels, by step.

    Args:
        cases: The cases to draw from: all labelled, or all taken without labels.
        config: Sampling and augmentation settings.
        labelled: Whether the labels steer what is drawn (organs, empty slices) and how (jitter by organ).

    Attributes:
        entries: (case, z) of each slice that may be drawn, by position.
        frame_px: Side of the square that holds every slice.

    Raises:
        ValueError: No slice to draw from.
    """

    def __init__(self, cases: list[Case], config: Config, labelled: bool):
        self.cases, self.config, self.labelled = cases, config, labelled
        self.per_batch = config.labelled_per_batch if labelled else config.unlabelled_per_batch
        entries = [(case, z) for case in cases for z in range(case.shape[0])]
        by_organ: dict[int, np.ndarray] = {}
        if labelled:
            entries, pixels = _with_share_of_empty(entries, config)
            by_organ = {c: np.flatnonzero(pixels[:, c] >= MIN_ORGAN_PX) for c in parse_organs(config.drawn_organs)}
        if not entries:
            raise ValueError(f"{config.store}: no {'labelled' if labelled else 'unlabelled'} slice to train on")
        self.entries = entries
        self._facts = facts = _facts(entries)
        self.frame_px = int(facts.size_px.max())
        self._by_organ = {c: positions for c, positions in by_organ.items() if len(positions)}
        self._shares = (  # of the samples that are drawn at random from some of the entries
            (config.true_hu_share * labelled, np.flatnonzero(np.isinf(facts.saturated_hu) & ~facts.negative)),
            (config.negative_share * labelled, np.flatnonzero(facts.negative)),
        )
        self._epoch, self._order = -1, np.zeros(0, int)

    def __len__(self) -> int:
        """Slices in an epoch; steps go on beyond it."""
        return len(self.entries)

    def plan(self, step: int) -> Plan:
        """The whole batch of a step, on all processes together."""
        rng = np.random.default_rng([self.config.seed, self.labelled, step])
        chosen = [self._choose(step * self.per_batch + i, rng) for i in range(self.per_batch)]
        entry, organ = np.array(chosen).T
        slices = Slices(*(facts[entry] for facts in self._facts))._replace(organ=organ)
        return Plan(slices, draw(slices, self.config, self.labelled, step))

    def _choose(self, position: int, rng: np.random.Generator) -> tuple[int, int]:
        """Position in entries, and the organ that it was drawn for (0: none), of a sample of the endless sequence."""
        seed, chance = self.config.seed, rng.random()
        if self._by_organ and chance < self.config.organ_share:
            organ = int(rng.choice(list(self._by_organ)))
            return int(rng.choice(self._by_organ[organ])), organ
        chance -= self.config.organ_share
        for share, positions in self._shares:
            if len(positions) and 0 <= chance < share:
                return int(rng.choice(positions)), 0
            chance -= share
        epoch, i = divmod(position, len(self.entries))
        if epoch != self._epoch:
            self._order = np.random.default_rng([seed, self.labelled, epoch]).permutation(len(self.entries))
            self._epoch = epoch
        return int(self._order[i]), 0


def _with_share_of_empty(entries: list[tuple[Case, int]], config: Config) -> tuple[list[tuple[Case, int]], np.ndarray]:
    """The slices with organs, all of negative cases, and of other empty ones, drawn once, the share asked for.

    Returns:
        The entries, and their pixels by label value (N, 14).
    """
    pixels = np.array([case.organ_pixels[z] for case, z in entries]).reshape(-1, NUM_CLASSES)
    with_organ = pixels[:, 1:].any(axis=1)
    negative = np.array([case.negative for case, _ in entries], bool)
    share, empty = config.empty_share, np.flatnonzero(~with_organ & ~negative)
    count = round(with_organ.sum() * share / (1 - share)) if share < 1 else len(empty)
    chosen = np.random.default_rng(config.seed).permutation(empty)[:count]
    kept = np.sort(np.concatenate([np.flatnonzero(with_organ | negative), chosen]))
    return [entries[i] for i in kept], pixels[kept]


def _facts(entries: list[tuple[Case, int]]) -> Slices:
    """`Slices` of all entries, none drawn for an organ."""
    cases = [case for case, _ in entries]
    unannotated = [[label > 0 and label not in case.annotated for label in range(NUM_CLASSES)] for case in cases]
    return Slices(
        entry=np.arange(len(entries)),
        size_px=np.array([case.shape[1:] for case in cases]),
        organ=np.zeros(len(entries), int),
        negative=np.array([case.negative for case in cases], bool),
        unannotated=np.array(unannotated),
        mean_hu=np.array([case.mean_hu for case in cases], np.float32),
        std_hu=np.array([case.std_hu for case in cases], np.float32),
        saturated_hu=np.array(
            [np.inf if case.saturated_hu is None else case.saturated_hu for case in cases], np.float32
        ),
    )

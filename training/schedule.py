"""What changes over a run. Learning rate: warm-up, then poly (paper table 2: WarmUpPoly); weight of CPS: warm-up."""


def warm_up(done: float, share: float) -> float:
    """0 to 1, linear over the first `share` of a run of which `done` is done; 1 if the share is 0."""
    return min(done / share, 1.0) if share else 1.0


def learning_rate(done: float, warmup: float, peak: float, power: float = 0.9) -> float:
    """Learning rate of a step: linear from 0 to the peak, then peak * (1 - t) ** power, t the share after the warm-up.

    Args:
        done: Share of the run that is done, 0..1; counted in steps or in seconds.
        warmup: Share of the run that is warm-up.
        peak: The initial learning rate of the paper.
        power: Of the poly decay.
    """
    if done < warmup:
        return peak * warm_up(done, warmup)
    if done >= 1:
        return 0.0
    return peak * (1 - (done - warmup) / (1 - warmup)) ** power

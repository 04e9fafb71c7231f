"""Warm-up, then poly (paper table 2: WarmUpPoly)."""


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float, power: float = 0.9) -> float:
    """Learning rate of a step: linear from peak / warmup_steps to peak, then peak * (1 - t) ** power.

    Args:
        step: 0-based.
        total_steps, warmup_steps: Lengths in steps.
        peak: The initial learning rate of the paper.
        power: Of the poly decay.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 - min(t, 1.0)) ** power

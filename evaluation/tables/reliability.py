"""The table of what the reliability trials tried and lost.

results/reliability.json          tests.reliability: {"trials": {NAME: {"rows": [{"what", "tried", "lost"}]}}}
"""

from evaluation.tables.markdown import machine, markdown


def reliability(result: dict) -> str:
    """What was tried, how often, how often it was lost, and the trial that tells more."""
    trials = result["trials"]
    rows = [
        [row["what"], *([str(row["tried"]), str(row["lost"])] if row["tried"] else ["not tried", ""]), f"`{name}`"]
        for name, trial in trials.items()
        for row in trial["rows"]
    ]
    machines = sorted({machine(trial) for trial in trials.values()})
    return (
        f"{markdown(['what', 'tried', 'lost', 'trial'], rows)}\n"
        "Lost is a promise broken; what each trial counts so, and its limits, stand at its head, its figures in "
        f"results/reliability.json. On {'; '.join(machines)}; `python -m tests.reliability TRIAL`.\n"
    )

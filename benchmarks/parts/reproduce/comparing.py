"""Published figures beside ours."""

from __future__ import annotations

import math

from benchmarks.harness.record import Result
from benchmarks.parts.reproduce.published import ERRORS, LEAST_SPREAD, MOST_SPREAD, PUBLISHED, PUBLISHED_SEEDS, REASONS
from benchmarks.parts.reproduce.table import described

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; a little too wide for more."""


def interval(seeds: int, sd: float, error: float = 0.0) -> float:
    """Return half the width, in points, of the 95 % interval of a difference to our mean; at least `LEAST_SPREAD`.

    By Welch's t-test, with degrees of freedom rounded down. `error`: standard error of a published mean, in points, of
    `PUBLISHED_SEEDS` runs; 0 takes it as exact.

    Example: 5 seeds with a deviation of 0.5 points give 2.776 * 0.5 / 5 ** 0.5 = 0.62.
    """
    if seeds < 2:
        return math.inf
    ours, theirs = sd**2 / seeds, error**2
    if ours + theirs == 0:
        return LEAST_SPREAD
    freedom = (ours + theirs) ** 2 / (ours**2 / (seeds - 1) + theirs**2 / (PUBLISHED_SEEDS - 1))
    quantile = _STUDENT[min(int(freedom + 1e-9), len(_STUDENT)) - 1]
    return max(quantile * math.sqrt(ours + theirs), LEAST_SPREAD)


def told_apart(seeds: int, sd: float) -> float:
    """Return the difference in points beyond which two single runs are told apart, by the deviation of some seeds.

    Half the width of the 95 % interval of such a difference. Example: 3 seeds with 0.1 give 4.303 * 2 ** 0.5 * 0.1.
    """
    return _STUDENT[min(seeds - 1, len(_STUDENT)) - 1] * math.sqrt(2) * sd


def chance_from(difference: float, seeds: int, sd: float) -> float:
    """Return the deviation of the published runs from which on `interval` holds a difference, to 0.01 points."""

    def holds(hundredths: int) -> bool:
        return interval(seeds, sd, hundredths / 100 / math.sqrt(PUBLISHED_SEEDS)) >= abs(difference)

    hundredths = math.ceil(100 * abs(difference) * math.sqrt(PUBLISHED_SEEDS))  # There their error is the difference.
    while hundredths > 0 and holds(hundredths - 1):
        hundredths -= 1
    return hundredths / 100


def verdict(difference: float, sd: float, limit: float) -> str:
    """Judge a published figure by its difference to our mean, by the deviation of our seeds and by `interval`.

    "alike" within the deviation, which counts as `LEAST_SPREAD` at least; "not told apart" within the interval;
    "differs" beyond it. "too wide to judge" where it does not differ and the interval is wide itself.
    """
    if abs(difference) > limit:
        return "differs"
    if limit > MOST_SPREAD:
        return "too wide to judge"
    return "alike" if abs(difference) <= max(sd, LEAST_SPREAD) else "not told apart"


def compared(content: Result) -> list[Result]:
    """Return each published figure beside ours of more than one seed, with the verdict."""
    published, errors = PUBLISHED.get(content["data"], {}), ERRORS.get(content["data"], {})
    found = []
    for row in described(content["runs"]):
        theirs = published.get(row["method"], {}).get(row["sparsity"])
        if theirs is not None and row["seeds"] > 1:
            error = errors.get(row["method"], {}).get(row["sparsity"])
            difference = row["mean"] - theirs
            limit = interval(row["seeds"], row["sd"], error or 0.0)
            reason = REASONS.get((row["method"], row["sparsity"]), "") or REASONS.get((row["method"], None), "")
            told = {"limit": limit, "verdict": verdict(difference, row["sd"], limit), "reason": reason}
            by_chance = error is None and told["verdict"] == "differs"
            told["chance_from"] = chance_from(difference, row["seeds"], row["sd"]) if by_chance else None
            found.append({**row, "published": theirs, "difference": difference, **told})
    return found

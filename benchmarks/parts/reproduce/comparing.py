"""Published figures beside ours."""

from __future__ import annotations

import math

from benchmarks.harness.record import Result
from benchmarks.parts.reproduce.published import LEAST_SPREAD, MOST_SPREAD, PUBLISHED, PUBLISHED_SEEDS, REASONS
from benchmarks.parts.reproduce.table import described

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; a little too wide for more."""


def uncertainty(seeds: int, sd: float) -> float:
    """Return half the width, in points, of the 95 % interval of a mean over seeds; not less than `LEAST_SPREAD`.

    Example: 5 seeds with a deviation of 0.5 points give 2.776 * 0.5 / 5 ** 0.5 = 0.62.
    """
    if seeds < 2:
        return math.inf
    return max(_STUDENT[min(seeds - 1, len(_STUDENT)) - 1] * sd / math.sqrt(seeds), LEAST_SPREAD)


def told_apart(seeds: int, sd: float) -> float:
    """Return the difference in points beyond which two single runs are told apart, by the deviation of some seeds.

    Half the width of the 95 % interval of such a difference. Example: 3 seeds with 0.1 give 4.303 * 2 ** 0.5 * 0.1.
    """
    return _STUDENT[min(seeds - 1, len(_STUDENT)) - 1] * math.sqrt(2) * sd


def chance_from(difference: float, seeds: int, sd: float) -> float:
    """Return the deviation in points of `PUBLISHED_SEEDS` published runs from which on a difference may be chance.

    There the 95 % interval of the difference of two means, by the degrees of freedom of both, reaches 0. Returns 0 if
    it does so by our deviation alone. Example: 0.18 with 5 seeds of 0.07 on our side gives 0.16.
    """
    quantile = _STUDENT[min(seeds + PUBLISHED_SEEDS - 2, len(_STUDENT)) - 1]
    theirs = (difference / quantile) ** 2 - sd**2 / seeds
    return math.sqrt(max(theirs, 0.0) * PUBLISHED_SEEDS)


def verdict(difference: float, sd: float, limit: float) -> str:
    """Judge a published figure by its difference to our mean, by the deviation of our seeds and by `uncertainty`.

    "alike" within the deviation, which counts as `LEAST_SPREAD` at least; "not told apart" within the uncertainty;
    "differs" beyond it. "cannot be told" where it does not differ and the uncertainty is wide itself.
    """
    if abs(difference) > limit:
        return "differs"
    if limit > MOST_SPREAD:
        return "cannot be told"
    return "alike" if abs(difference) <= max(sd, LEAST_SPREAD) else "not told apart"


def compared(content: Result) -> list[Result]:
    """Return each published figure beside ours of more than one seed, with the verdict."""
    published = PUBLISHED.get(content["data"], {})
    found = []
    for row in described(content["runs"]):
        theirs = published.get(row["method"], {}).get(row["sparsity"])
        if theirs is not None and row["seeds"] > 1:
            difference, limit = row["mean"] - theirs, uncertainty(row["seeds"], row["sd"])
            reason = REASONS.get((row["method"], row["sparsity"]), "") or REASONS.get((row["method"], None), "")
            told = {"limit": limit, "verdict": verdict(difference, row["sd"], limit), "reason": reason}
            chance = chance_from(difference, row["seeds"], row["sd"])
            found.append({**row, "published": theirs, "difference": difference, "chance_from": chance, **told})
    return found

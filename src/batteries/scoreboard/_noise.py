"""Find out whether a difference of scores is more than the noise of seeds, folds or rows."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from batteries._arrays import as_array, index_of, refuse_other_order
from batteries._optional import import_optional
from batteries._scoring import as_scoring
from batteries.scoreboard._info import RunInfo, folds_of

_SAMPLES = 2000
_SEED = 42
_SEEDS = re.compile(r"(?i)(?:^|_)seeds?(?:_|$)|^random_state$")  # names of arguments
_ALPHA = 0.05
_ROUNDED = 1e-12  # relative rounding error of scores
_PAIRS = 5  # with at least this many equal seeds, runs are compared in pairs
_POWER = 0.84  # standard errors beyond the limit: such a difference is seen in 80 of 100 cases


class Difference(NamedTuple):
    """A difference of two scores, and its interval.

    >>> Difference(0.02, (0.01, 0.03), "5 folds").beyond_noise
    True

    Attributes:
        value: The second score minus the first.
        interval: The 95 % interval. It is wider if there are several comparisons: then all verdicts
            "beyond noise" are right with a probability of at least 95 % (Holm 1979). It is infinite
            if the seeds or folds have no spread, since their noise is then not known.
        by: The source of the noise: "5 folds", "300 rows", "3 and 4 seeds", "5 pairs of seeds".
        scores: The first and the second score, or their means.
        p: The probability that two equal runs would show such a difference or a larger one.
        pair: The positions of the two runs in `Comparison.names`.
        of: The number of comparisons that were made together.
        needed: About how many seeds of each run, folds or rows would show such a difference in 80
            of 100 cases. None if the present ones show it, or if that is not known.
    """

    value: float
    interval: tuple[float, float]
    by: str
    scores: tuple[float, float] | None = None
    p: float | None = None
    pair: tuple[int, int] = (0, 1)
    of: int = 1
    needed: int | None = None

    @property
    def beyond_noise(self) -> bool:
        """Whether 0 is outside of the interval."""
        low, high = self.interval
        return not low <= 0 <= high


@dataclass
class Evidence:
    """A difference before the correction for several comparisons."""

    pair: tuple[int, int]
    scores: tuple[float, float]
    by: str
    p: float
    interval: Callable[[float], Iterable[float]]  # its argument: the probability of being outside
    variance: float  # of one seed of each, of one fold or of one row
    freedom: float = math.inf  # the degrees of freedom that a further seed or fold adds
    fewest: int = 2  # seeds, folds or rows that can show a difference


def decided(found: Sequence[Evidence]) -> list[Difference]:
    """Apply Holm's procedure to m differences.

    The smallest p is compared with alpha / m, the next one with alpha / (m - 1), and so on.
    """
    alpha, ended, level = 0.0, False, dict[int, float]()
    for rank, each in enumerate(sorted(found, key=lambda each: each.p)):
        if not ended:
            alpha = _ALPHA / (len(found) - rank)
        ended = ended or each.p > alpha  # all later differences get the level of this one
        level[id(each)] = alpha
    return [_difference(each, level[id(each)], len(found)) for each in found]


def _difference(each: Evidence, alpha: float, of: int) -> Difference:
    value = each.scores[1] - each.scores[0]
    low, high = map(float, each.interval(alpha))
    found = Difference(value, (low, high), each.by, each.scores, each.p, each.pair, of)
    return found if found.beyond_noise else found._replace(needed=_needed(each, value, alpha))


def _needed(each: Evidence, value: float, alpha: float) -> int | None:
    """How many seeds, folds or rows would show the difference. None: no number would."""

    def limit(count: int) -> float:
        if math.isinf(each.freedom):
            return normal
        stats: Any = import_optional("scipy.stats", for_="compare by seeds or folds")
        return float(stats.t.isf(alpha / 2, each.freedom * (count - 1)))

    normal = statistics.NormalDist().inv_cdf(1 - alpha / 2)
    needed = (normal + _POWER) ** 2 * each.variance / value**2 if value else math.inf
    if not math.isfinite(needed):
        return None
    count = max(math.ceil(needed), each.fewest)
    while count * value**2 < each.variance * (limit(count) + _POWER) ** 2:
        count += 1  # few values need a larger difference
    return count


# ---------------------------------------------------------------- seeds and folds


def configuration(run: RunInfo) -> Any:
    """The arguments of a run without seeds, and its metric."""
    return _without_seed(run.session.get("args") or {}), run.metric


def _without_seed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_seed(each) for name, each in value.items() if not _SEEDS.search(name)}


def _seed_of(run: RunInfo) -> Any:
    pairs = run.arguments.items()
    return tuple((name, each) for name, each in pairs if any(map(_SEEDS.search, name.split("."))))


def by_seeds(
    pair: tuple[int, int], first: RunInfo, second: RunInfo, among: Sequence[RunInfo]
) -> Evidence | None:
    """Compare two configurations with two or more seeds each. Runs of one seed are averaged."""
    kinds = [configuration(run) for run in (first, second)]
    if kinds[0] == kinds[1] or not all(arguments for arguments, _ in kinds):
        return None
    known = {run.path.resolve(): run for run in (*among, first, second)}
    groups = list[dict[Any, float]]()
    for kind in kinds:
        repeats: dict[Any, list[float]] = {}
        for run in known.values():
            if run.validation is not None and configuration(run) == kind:
                repeats.setdefault(_seed_of(run), []).append(run.validation)
        groups.append({seed: statistics.fmean(each) for seed, each in repeats.items()})
    one, other = groups
    if min(len(one), len(other)) < 2:
        return None
    scores = [np.array([*group.values()]) for group in groups]
    means = float(scores[0].mean()), float(scores[1].mean())
    if one.keys() == other.keys() and len(one) >= _PAIRS:
        return _paired(pair, [scores[0], [other[seed] for seed in one]], "pairs of seeds")
    by = f"{len(one)} and {len(other)} seeds"
    if not any(_has_spread(each, each) for each in scores):
        return _without_spread(pair, means, by)
    stats: Any = import_optional("scipy.stats", for_="compare by seeds")
    test = stats.ttest_ind(scores[1], scores[0], equal_var=False)
    variances = np.array([each.var(ddof=1) for each in scores])
    variance = float(variances.sum())
    freedom = variance**2 / float(np.square(variances).sum())
    return _tested(pair, means, by, test, variance, freedom)


def by_folds(pair: tuple[int, int], first: RunInfo, second: RunInfo) -> Evidence | None:
    """Compare two runs by their folds, with Student's interval: few folds cannot be resampled."""
    folds = [folds_of(run) for run in (first, second)]
    return _paired(pair, folds, "folds") if len(folds[0]) == len(folds[1]) > 1 else None


def _paired(pair: tuple[int, int], scores: Sequence[Any], unit: str) -> Evidence:
    means, by = (float(np.mean(scores[0])), float(np.mean(scores[1]))), f"{len(scores[0])} {unit}"
    gains = np.subtract(scores[1], scores[0])
    if not _has_spread(gains, scores):
        return _without_spread(pair, means, by)
    stats: Any = import_optional("scipy.stats", for_=f"compare by {by}")
    return _tested(pair, means, by, stats.ttest_1samp(gains, 0), float(gains.var(ddof=1)), 1)


def _has_spread(values: Any, scores: Any) -> bool:
    """Whether the values differ by more than the rounding error of scores."""
    return bool(np.ptp(values) > _ROUNDED * np.max(np.abs(scores)))


def _tested(
    pair: tuple[int, int],
    means: tuple[float, float],
    by: str,
    test: Any,
    variance: float,
    freedom: float,
) -> Evidence:
    p, interval = float(test.pvalue), lambda alpha: test.confidence_interval(1 - alpha)
    return Evidence(pair, means, by, p, interval, variance, freedom)


def _without_spread(pair: tuple[int, int], means: tuple[float, float], by: str) -> Evidence:
    """Equal values do not show their noise, so the interval is infinite."""
    return Evidence(pair, means, by, 1.0, lambda _: (-math.inf, math.inf), math.inf)


# ---------------------------------------------------------------- rows


def paired_bootstrap(
    target: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    metric: str | Callable[[Any, Any], float],
) -> Difference:
    """Compare two predictions, with an interval by resampling the rows.

    >>> target = np.arange(200) % 2
    >>> better = paired_bootstrap(target, 1 - target, target, "accuracy")
    >>> better.value, better.beyond_noise
    (1.0, True)

    The rows are drawn 2,000 times with replacement. Each time, both predictions are scored on the
    same rows, so rows that are hard for both cancel out. Equal calls have equal results.

    Args:
        target: (rows,).
        first, second: The predictions, (rows,) or (rows, classes).
        metric: As for `find_weights`. A function needs no direction here.

    Returns:
        The difference: its `value` is the second score minus the first, and `by` is "300 rows".

    Raises:
        TypeError: The metric does not return one number.
        ValueError: Different numbers of rows, fewer than two of them, an unknown metric, or one
            that is not a finite number on these rows.
        ModuleNotFoundError: scikit-learn is not installed, for a metric by its name.
    """
    refuse_other_order("target and predictions", *map(index_of, (target, first, second)))
    target = as_array(target, "target")
    own = as_scoring(metric).of(target)
    return decided(list(by_rows(target, [first, second], own)))[0]


def by_rows(
    target: ArrayLike, predictions: Sequence[ArrayLike], metric: Callable[[Any, Any], float]
) -> Iterator[Evidence]:
    arrays = [as_array(array, "target or prediction") for array in (target, *predictions)]
    lengths = {len(np.atleast_1d(array)) for array in arrays}
    if len(lengths) > 1:
        raise ValueError(
            f"target and predictions have {sorted(lengths)} rows; expected equal numbers of rows"
        )
    y, *ours = arrays
    count, generator = max(lengths), np.random.default_rng(_SEED)
    if count < 2:
        raise ValueError(
            f"target and predictions have {count} rows; the noise of rows needs two or more"
        )
    samples = tqdm(range(_SAMPLES), "bootstrap", leave=False, disable=None)
    drawn = []
    with warnings.catch_warnings():  # samples without a rare class have no score
        warnings.filterwarnings("ignore", "Only one class is present")
        warnings.filterwarnings("ignore", module=r"sklearn\.")
        for _ in samples:
            rows = generator.integers(0, count, count)
            drawn.append([metric(y[rows], own[rows]) for own in ours])
    table, scores = np.array(drawn), [metric(y, own) for own in ours]
    table = table[np.isfinite(table).all(1)]
    if len(table) < _SAMPLES / 2 or not np.isfinite(scores).all():
        raise ValueError(
            f"the metric is not a finite number on these {count} rows: check it on one prediction"
        )
    for pair in itertools.combinations(range(len(ours)), 2):
        i, j = pair
        gains = table[:, j] - table[:, i]
        p = 2 * min(float(np.mean(gains <= 0)), float(np.mean(gains >= 0)))
        variance = count * float(gains.var())
        own, interval = (scores[i], scores[j]), partial(_quantiles, gains)
        yield Evidence(
            pair, own, f"{count} rows", min(p, 1.0), interval, variance, fewest=count + 1
        )


def _quantiles(gains: Any, alpha: float) -> Any:
    return np.quantile(gains, [alpha / 2, 1 - alpha / 2])

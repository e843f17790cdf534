"""Read runs, and compare their validation, test and leaderboard scores."""

from batteries import _public
from batteries._rundir.checksums import Parting, first_difference
from batteries._rundir.scores import record_scores
from batteries.scoreboard._compare import Comparison, compare
from batteries.scoreboard._gaps import GapCheck, check_gap, check_gaps
from batteries.scoreboard._info import Checkpoint, RunInfo, Stage, Validation, read_run
from batteries.scoreboard._noise import Difference, paired_bootstrap
from batteries.scoreboard._runs import Runs, best_first, find_run, read_runs
from batteries.scoreboard._series import Metric, Series

__all__ = [
    "Checkpoint",
    "Comparison",
    "Difference",
    "GapCheck",
    "Metric",
    "Parting",
    "RunInfo",
    "Runs",
    "Series",
    "Stage",
    "Validation",
    "best_first",
    "check_gap",
    "check_gaps",
    "compare",
    "find_run",
    "first_difference",
    "paired_bootstrap",
    "read_run",
    "read_runs",
    "record_scores",
]
_public.own(globals())

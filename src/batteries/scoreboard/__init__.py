"""Validation, test and leaderboard scores of runs, and what they say together."""

from batteries.scoreboard._compare import Comparison as Comparison
from batteries.scoreboard._compare import compare as compare
from batteries.scoreboard._compare import paired_bootstrap as paired_bootstrap
from batteries.scoreboard._gaps import check_gap as check_gap
from batteries.scoreboard._gaps import check_gaps as check_gaps
from batteries.scoreboard._runs import RunInfo as RunInfo
from batteries.scoreboard._runs import Stage as Stage
from batteries.scoreboard._runs import best_first as best_first
from batteries.scoreboard._runs import find_run as find_run
from batteries.scoreboard._runs import read_run as read_run
from batteries.scoreboard._runs import read_runs as read_runs
from batteries.scoreboard._scores import record_scores as record_scores

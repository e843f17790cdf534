"""Validation, test and leaderboard scores of runs, and what they say together."""

from batteries.scoreboard.compare import Comparison as Comparison
from batteries.scoreboard.compare import compare as compare
from batteries.scoreboard.compare import paired_bootstrap as paired_bootstrap
from batteries.scoreboard.gaps import check_gap as check_gap
from batteries.scoreboard.gaps import check_gaps as check_gaps
from batteries.scoreboard.runs import RunInfo as RunInfo
from batteries.scoreboard.runs import Stage as Stage
from batteries.scoreboard.runs import best_first as best_first
from batteries.scoreboard.runs import find_run as find_run
from batteries.scoreboard.runs import read_run as read_run
from batteries.scoreboard.runs import read_runs as read_runs
from batteries.scoreboard.scores import record_scores as record_scores

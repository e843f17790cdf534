"""The `batteries` command: look at runs, score and compare them, start new ones."""

from batteries.cli import (  # noqa: F401 (they add commands)
    _average,
    _blend,
    _compare,
    _completion,
    _env,
    _export,
    _gaps,
    _inspect,
    _new,
    _prune,
    _report,
    _rerun,
    _runs,
    _score,
    _show,
)
from batteries.cli._group import main as main

"""The `batteries` command: look at runs, score and compare them, begin new ones."""

from batteries.cli import (  # noqa: F401 (they add commands)
    _average,
    _blend,
    _compare,
    _completion,
    _env,
    _gaps,
    _inspect,
    _new,
    _report,
    _runs,
    _score,
)
from batteries.cli._group import main as main

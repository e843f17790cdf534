"""The `batteries` command: look at runs, score and compare them, begin new ones."""

from batteries.cli import _comparison, _files, _projects, _runs  # noqa: F401 (they add commands)
from batteries.cli._group import main as main

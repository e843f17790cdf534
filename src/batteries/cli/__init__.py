"""The `batteries` command: look at runs, score and compare them, begin new ones."""

from batteries.cli import comparison, files, projects, runs  # noqa: F401 (they add commands)
from batteries.cli.group import main as main

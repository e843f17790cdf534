"""The command itself, and parts that several of its commands share."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from batteries import __version__
from batteries._foreign import printable

if TYPE_CHECKING:
    from batteries.scoreboard import RunInfo, Runs

_LONG = 5000  # letters of an error


class _Named(click.Group):
    """Shows errors as a message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ImportError, LookupError, MemoryError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, click.exceptions.Exit | click.Abort):  # these are RuntimeErrors
                raise
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # click handles `| head`
                raise
            text = error.args[0] if isinstance(error, KeyError) else error
            lines = str(text or type(error).__name__)[:_LONG].expandtabs(4).split("\n")
            raise click.ClickException("\n".join(map(printable, lines))) from error


@click.group(cls=_Named, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batteries")
def main() -> None:
    """List, score and compare runs, average checkpoints, blend predictions, start experiments.

    LOGDIR is the directory of the runs. RUN is the path, the name or the number of a run.
    """


def say(text: str, err: bool = False) -> None:
    """Print lines that may have texts from files. Control characters are escaped."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def say_problems(runs: Sequence[RunInfo]) -> None:
    for run in runs:
        for problem in run.problems:
            say(f"{run.name}: {problem}", err=True)


def read(
    logdir: str,
    minimization: dict[str, bool] | None = None,
    which: Literal["last", "best"] = "best",
) -> Runs:
    """The runs below a directory, or an error if there are none."""
    from batteries.scoreboard._runs import Runs, some_runs

    return Runs(some_runs(logdir), minimization, which)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
logdir_option = click.option(
    "--logdir",
    default=".",
    type=click.Path(file_okay=False),
    show_default=True,
    help="The directory to search, if a run is given by its name in it or by its number.",
)

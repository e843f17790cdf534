"""`batteries export`: the table of runs, or all logged values, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from batteries._files import write_whole
from batteries.cli._group import main, read, say, say_problems
from batteries.cli._tables import as_csv, dumped


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", required=True, help="The .csv, .json or .parquet to write.")
@click.option("--metrics", is_flag=True, help="Write all logged values, one row for each.")
def export(logdir: str, output: str, metrics: bool) -> None:
    """Write a table of the runs below LOGDIR. With --metrics, write a table of all logged values.

    LOGDIR is `runs` by default.

    \b
    batteries export runs -o runs.csv
    batteries export runs --metrics -o values.parquet
    """  # noqa: D301
    kind = Path(output).suffix
    if kind not in (".csv", ".json", ".parquet"):
        raise ValueError(f"{output} ends with {kind!r}; expected .csv, .json or .parquet")
    runs = read(logdir)
    paths = {run.name: str(run.path) for run in runs}
    with write_whole(Path(output)) as file:
        if kind == ".parquet":
            frame = runs.metrics() if metrics else runs.table()
            frame.with_columns(frame["run"].replace(paths)).write_parquet(file)
        else:
            rows: list[dict[str, Any]] = [
                {"run": run.name, "metric": name, "step": step, "time": time, "value": value}
                for run in (runs if metrics else ())
                for name, one in run.series().items()
                for step, time, value in zip(one.steps, one.times, one.values, strict=True)
            ]
            rows = rows if metrics else runs.rows()
            rows = [{**row, "run": paths[row["run"]]} for row in rows]
            names = ["run", "metric", "step", "time", "value"] if metrics else runs.columns
            file.write((as_csv(rows, names) if kind == ".csv" else dumped(rows)).encode())
    say_problems(runs)
    say(f"{output} is written")

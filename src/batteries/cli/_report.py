"""`batteries report`: the page of a project."""

from __future__ import annotations

import click

from batteries.cli._group import main


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", default="report.html", show_default=True, help="The page to write.")
@click.option(
    "--watch",
    is_flag=True,
    help="Serve the page on this machine instead of writing it. It updates itself.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port of --watch. Default: a free port.",
)
def report(logdir: str, output: str, watch: bool, port: int) -> None:
    """Write a page about the runs below LOGDIR, for a browser.

    LOGDIR is `runs` by default.

    \b
    batteries report runs -o report.html
    batteries report runs --watch
    """  # noqa: D301
    if watch:
        from batteries.report._live import report_server

        try:
            server, address = report_server(logdir, port)
        except OSError as error:
            raise OSError(
                f"port {port} cannot be used: {error.strerror}. Leave out --port, or choose another"
            ) from error
        try:
            click.echo(f"{address} shows the runs in {logdir}; press Ctrl-C to stop")
            server.serve_forever()
        except KeyboardInterrupt:
            return
        finally:
            server.server_close()
    from batteries.report import write_report

    click.echo(f"{write_report(logdir, output)} is written")

"""The page of runs in progress, served on this machine."""

from __future__ import annotations

import hashlib
import secrets
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from batteries._files import PathLike, walk
from batteries.report._contents import Contents, contents_of
from batteries.report._page import data_of, page_of
from batteries.scoreboard import RunInfo, Runs, read_runs

_FILES = 10_000  # files of a run, at most, whose times are compared
_DEEP = 2  # levels of directories below a run
Seen = tuple[tuple[Path, int, int], ...]


class LiveReport:
    """The current state of the runs below a directory. Only changed runs are read again."""

    def __init__(self, logdir: PathLike) -> None:
        self.logdir = logdir
        self._known: dict[str, tuple[Seen, str, RunInfo, Contents]] = {}
        self._data: tuple[str, bytes] = ("", b"")
        self._lock = threading.Lock()
        self.reads = 0  # how many times a run was read

    def data(self) -> tuple[str, bytes]:
        """The data of the page, after a tag that changes with the data."""
        with self._lock:
            runs, changed = read_runs(self.logdir), not self._data[0]
            known = {}
            for run in runs:
                seen, own = _seen(run.path), self._known.get(run.name)
                if own is None or (own[0], own[1]) != (seen, run.state):
                    own, changed = (seen, run.state, run, contents_of(run)), True
                    self.reads += 1
                known[run.name] = own
            if changed or known.keys() != self._known.keys():
                self._known = known
                both = [known[run.name][2:] for run in runs]
                kept = Runs([run for run, _ in both], runs.minimization)
                data = data_of(self.logdir, kept, [contents for _, contents in both])
                self._data = (f'"{hashlib.sha256(data).hexdigest()[:32]}"', data)
            return self._data


def _seen(path: Path) -> Seen:
    """The sizes and times of the files of a run."""
    found: list[tuple[Path, int, int]] = []
    for folder, _, names in walk(path, _DEEP):
        for name in names[: _FILES - len(found)]:
            file = Path(folder, name)
            with suppress(OSError):  # removed meanwhile
                told = file.lstat()
                # A new time of the record is only a sign of life: its content is the same.
                time = told.st_mtime_ns if name != "run.json" else told.st_ino
                found.append((file, told.st_size, time))
    return tuple(sorted(found))


def report_server(logdir: PathLike, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server that only this machine can reach, and the address of its page.

    The address has a secret part, because other users of the machine can reach the port.
    """
    live, secret = LiveReport(logdir), secrets.token_urlsafe(16)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A request with another Host may come from a foreign page (DNS rebinding).
            here = self.headers.get("Host") == f"127.0.0.1:{server.server_port}"
            name = {f"/{secret}/": "", f"/{secret}/data": "data"}.get(self.path) if here else None
            if name is None:
                self.send_error(404)
                return
            tag, data = live.data()
            if name == "data" and self.headers.get("If-None-Match") == tag:
                self.send_response(304)
                self.end_headers()
                return
            body = data if name else page_of(data, live=True)
            self.send_response(200)
            kind = "application/json" if name else "text/html; charset=utf-8"
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "ETag": tag}
            headers |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Requests are not printed."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    return server, f"http://127.0.0.1:{server.server_port}/{secret}/"

"""The page in a browser: what a person sees, clicks and types."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browser
from sweeps import sweep
from test_report import EVIL, train
from websockets.sync.connection import Connection

from batteries import JsonLinesLogger, start_run
from batteries.report import write_report
from batteries.report._live import LiveReport, report_server
from batteries.scoreboard import record_scores


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven runs with scores, one with hostile names, one broken, one of four folds."""
    root = tmp_path_factory.mktemp("logdir")
    for number in range(1, 8):
        path = train(str(root), 8, 0.1 * ((number + 1) // 2), seed=number % 2, note=EVIL)
        record_scores(path, leaderboard=0.8 + number / 100, test=0.8 + number / 200)
    with start_run(root / EVIL.replace("/", "|"), {EVIL: EVIL}) as run:
        (run.path / "log.txt").write_text(f"{EVIL}\n")
        with JsonLinesLogger(run.path) as lines:
            lines.log_metrics({EVIL: 1.0, "loss": float("nan")}, 1)
            lines.log_text(EVIL, EVIL, 1)
            lines.log_image(EVIL, np.zeros((4, 4)), 1)
            lines.log_histogram("weights", [1.0, 2.0], 1)
    (root / "broken").mkdir()
    (root / "broken/run.json").write_text('{"sessions": [')
    with start_run(root / "folds", {"lr": 0.5}) as run, JsonLinesLogger(run.path) as lines:
        for step in range(1, 41):
            folds = {f"fold_{fold}": {"loss": fold + 1 / step} for fold in range(4)}
            odd = math.nan if step == 20 else 1e6 if step == 30 else 1 / step
            lines.log_metrics({**folds, "odd": odd}, step)
    return root


@pytest.fixture(scope="module")
def report(logdir: Path) -> Path:
    return write_report(logdir, logdir / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with browser(tmp_path_factory.mktemp("profile")) as connection:
        yield connection


@pytest.fixture(scope="module")
def loaded(report: Path, chromium: Connection) -> Page:
    found = Page(chromium)
    found.open(report)
    return found


@pytest.fixture
def page(loaded: Page) -> Iterator[Page]:
    """The page as it is when it is opened; it is loaded once for all tests."""
    loaded.show(1280, 900, "light")
    loaded.read("""{
        history.replaceState(null, "", "#");
        fromHash("");
        renew(byId("data").textContent);
        for (const plot of document.querySelectorAll("#panels .plot")) {
            plot.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
        }
        document.activeElement.blur();
        scrollTo(0, 0);
    }""")
    loaded.settle()
    yield loaded
    assert loaded.complaints() == []


NAMES = "[...document.querySelectorAll('#table tbody th')].map((cell) => cell.textContent)"
LINES = "document.querySelector('.panel').querySelectorAll('path.curve').length"
DRAWN = "drawn().map((unit) => unit.key)"


def change(page: Page, **values: Any) -> None:
    page.read(f"change({json.dumps(values)})")
    page.settle()


def test_the_best_are_drawn(page: Page) -> None:
    """At first the best five by the metric's direction are drawn; the table begins with them."""
    drawn = page.read(DRAWN)
    assert drawn == page.read(NAMES)[:5]
    assert set(drawn) == {"003", "004", "005", "006", "007"}  # those of the larger rates


def test_a_click_sorts(page: Page) -> None:
    """A click on a heading sorts by it, a second one backwards; what has no value stays behind."""
    heads = "[...document.querySelectorAll('#table thead th')].map((cell) => cell.textContent)"
    head = f"#table thead th:nth-child({page.read(heads).index('test') + 1})"
    page.click(f"{head} button")
    forwards = page.read(NAMES)
    assert forwards[:7] == [f"00{number}" for number in range(1, 8)]
    page.click(f"{head} button")
    assert page.read(NAMES)[:7] == forwards[:7][::-1]
    assert page.read(NAMES)[7:] == forwards[7:]
    assert page.read(f"document.querySelector('{head}').ariaSort") == "descending"


def test_a_choice_changes_the_curves(page: Page) -> None:
    """A tick in the table draws a run's curves, and takes them away; others keep their colours."""
    before, colours = page.read(LINES), page.read("drawn().map((unit) => unit.slot)")
    page.click("#table input[aria-label='draw 001']")
    assert page.read(LINES) == before + 2  # of training and of validation
    assert page.read("drawn().map((unit) => unit.slot)")[:5] == colours
    page.click("#table input[aria-label='draw 001']")
    assert page.read(LINES) == before
    page.click("#none")
    assert page.read(LINES) == 0


def test_by_keyboard(page: Page) -> None:
    """Headings, ticks and curves are reached and used with keys alone, and the cursor is shared."""
    page.read("document.querySelector('#table thead button').focus()")
    page.press("Enter")
    assert page.read("document.querySelector('#table thead th').ariaSort") == "ascending"
    assert page.read("document.activeElement.textContent") == "run"
    page.read("document.querySelector('#table input[aria-label=\"draw 001\"]').focus()")
    page.press("Space")
    assert "001" in page.read(DRAWN)
    page.read("document.querySelector('.panel .plot').focus()")
    page.press("Home")
    told = "[...document.querySelectorAll('#panels .plot')].map((plot) => plot.ariaValueText)"
    assert all(text.startswith("step 1: ") for text in page.read(told))
    page.press("ArrowRight")
    assert all(text.startswith("step 2: ") for text in page.read(told))


def test_filters(page: Page) -> None:
    """Conditions of any column, and words, keep their runs; a wrong one says what is wrong."""
    wrong = "document.getElementById('wrong').textContent"
    for text, count in [("lr>0.15; test<0.83", 3), ("FINISHED accuracy", 7), ("run~^00[12]", 2),
                        ("valid/accuracy>0", 7), ("test=", 3), ("state!=finished", 1)]:  # fmt: skip
        change(page, q=text)
        assert (len(page.read(NAMES)), page.read(wrong)) == (count, ""), text
    for text, words in [("lr=high", "lr is a number"), ("rate=1", "no column rate")]:
        change(page, q=text)
        assert words in page.read(wrong)


def test_groups(page: Page) -> None:
    """Groups have the mean and spread of their runs, and a curve with a band each."""
    change(page, group=["lr"], q="test>0")
    row = page.read("document.querySelector('#table tbody tr:nth-child(2)').textContent")
    assert row.startswith("lr = 0.3")
    assert len(page.read(NAMES)) == 4
    assert page.read("document.querySelectorAll('#panels .panel path.spread').length") > 0
    mean = page.read("spread([0, 1], 'leaderboard.public')")
    assert mean == {"count": 2, "mean": pytest.approx(0.815), "std": pytest.approx(0.01 / 2**0.5)}


def test_folds_and_odd_values(page: Page) -> None:
    """Four folds look different; a gap breaks the line, and an outlier has a mark of its own."""
    change(page, draw=["folds/001"], panels=["loss", "odd"])
    looks = "[...document.querySelectorAll('#panels .panel:first-child path.curve')].map((path) =>"
    looks += " path.getAttribute('stroke') + path.getAttribute('stroke-dasharray'))"
    assert len(set(page.read(looks))) == 4
    odd = "document.querySelector('#panels .panel:nth-child(2)')"
    assert page.read(f"{odd}.querySelector('path.curve').getAttribute('d')").count("M") == 2
    assert page.read(f"{odd}.querySelectorAll('.outlier').length") == 1
    change(page, clip=False)
    assert page.read(f"{odd}.querySelectorAll('.outlier').length") == 0


def test_scales(page: Page) -> None:
    """Log scale, smoothing, epochs and time change the curves, and are in the address."""
    path = "document.querySelector('#panels path.curve:not(.raw)').getAttribute('d')"
    seen = {page.read(path)}
    for values in ({"log": True}, {"log": False, "smooth": 10}, {"smooth": 0, "x": "time"}):
        change(page, **values)
        seen.add(page.read(path))
    assert len(seen) == 4
    change(page, x="epoch")
    assert page.read("document.querySelector('#panels .plot').ariaValueText").startswith("epoch 8:")


def test_zoom_and_address(page: Page) -> None:
    """Dragging zooms all plots, and the address shows the same view again."""
    change(
        page, draw=["folds/001", None, "001"], q="lr>0", group=[], sort="-test", sx="lr", par=["lr"]
    )
    frame = "document.querySelector('#panels .plot').getBoundingClientRect()"
    page.read("document.querySelector('#panels .plot').scrollIntoView({block: 'center'})")
    x, y, wide = page.read(f"[{frame}.x, {frame}.y, {frame}.width]")
    page.drag((x + wide * 0.4, y + 99), (x + wide * 0.7, y + 99))
    low, high = page.read("state.zoom")
    assert 1 < low < high < 40
    view = "JSON.stringify([state, document.querySelector('#panels path.curve').getAttribute('d')])"
    before, hash_ = page.read(view), page.read("location.hash")
    page.read("location.hash = ''")
    page.settle()
    assert page.read("state.zoom") is None
    page.read(f"location.hash = {json.dumps(hash_)}")
    page.settle()
    assert page.read(view) == before


def test_markup_stays_text(page: Page) -> None:
    """A run named `<script>` is a run named `<script>`, in all parts of the page."""
    name = EVIL.replace("/", "|") + "/001"
    change(
        page, run=name, draw=[name, "001"], panels=["script>alert(1)<"], sx="lr", par=["note", "lr"]
    )
    change(page, panels=[page.read("curveGroups().find((name) => name.includes('script'))")])
    assert page.read("document.querySelectorAll('script').length") == 2
    shown = page.read("document.getElementById('detail').textContent")
    assert shown.count(EVIL) >= 4
    assert EVIL in page.read("document.getElementById('compare').textContent")
    assert "broken: " in page.read("document.getElementById('problems').textContent")
    assert page.read("document.querySelector('#detail img').decode().then(() => true)")
    assert page.read("document.querySelectorAll('#detail .bar').length") > 1


def test_one_run(page: Page) -> None:
    """A click on a run's name shows its arguments, machine, log and checkpoints."""
    page.click("#table tbody tr:nth-child(3) .name")
    name = page.read(NAMES)[2]
    assert page.read("document.activeElement.textContent") == f"Run {name}"
    shown = page.read("document.getElementById('detail').textContent")
    for text in ("lr", "platform", "exp_8.pth", "epoch 8: accuracy", "torch"):
        assert text in shown
    row = "document.querySelector('#checkpoints tbody tr').textContent"
    assert page.read(row).startswith("10078")  # rank 1, run 007, epoch 8


def test_columns_against_each_other(page: Page) -> None:
    """Each run with both scores is a point, and a line across the axes; the best is marked."""
    assert page.read("document.querySelectorAll('#scatter circle[data-run]').length") == 7
    assert "moves with validation" in page.read("document.getElementById('scatter').textContent")
    change(page, sx="lr", sy="test", slog=True)
    assert page.read("document.querySelectorAll('#scatter circle[data-run]').length") == 7
    assert page.read("document.querySelectorAll('#parallel path[data-run]').length") == 5
    compared = page.read("document.getElementById('compare').textContent")
    assert "(best)" in compared
    tie = "data.columns.loss = [1, 2, 1]; known.clear(); data.minimization.loss = true"
    table = page.read(f"{tie}; sideBySide('', ['loss'], [0, 1, 2], false).textContent")
    assert table.endswith("loss1 (best)21 (best)")
    assert page.read("lineDiff(['a', 'b', 'c'], ['a', 'x', 'c'])") == [" a", "-b", "+x", " c"]


def test_the_code_of_two_runs(page: Page) -> None:
    """What is not known, or not compared, is said; one thing is not called several."""
    column = "data.columns.commit = runs.map(() => null)"
    assert page.read(f"{column}; codeOf(0, 1).textContent") == (
        "The commits of both runs are unknown."
    )
    lines = "data.shared.push('a\\n'.repeat(1600)) - 1"
    shown = page.read(f"runs[0].diff = {lines}; codeOf(0, 1).textContent")
    assert " The first 1500 lines of the changes are compared." in shown
    change(page, draw=[f"00{number}" for number in range(1, 8)] + ["folds/001", "broken"])
    compared = page.read("document.getElementById('compare').textContent")
    assert "The first 8 of 9 drawn runs" in compared
    change(page, q="run=001")
    assert page.read("document.getElementById('count').textContent") == "1 of 10 runs"
    assert page.read("[counted(1, 'group'), counted(0, 'group')]") == ["1 group", "0 groups"]


def test_pictures_of_a_plot(page: Page) -> None:
    """A plot is an SVG file that stands alone, and a PNG file."""
    plot = "document.querySelector('#panels .plot')"
    root = ElementTree.fromstring(page.read(f"svgText({plot}, 'a < b')"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in ElementTree.tostring(root, encoding="unicode")
    assert page.read(f"pngAddress({plot}, 'x')").startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("scheme", ["light", sweep("dark")])
def test_fits_a_phone(page: Page, scheme: str) -> None:
    """On 390 pixels the page does not move sideways, in light and in dark."""
    page.show(390, 844, scheme)
    page.read("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.settle()
    assert page.read("document.documentElement.scrollWidth") == 390
    back = page.read("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) > 384) == (scheme == "light")


def test_only_what_changed_is_read(tmp_path: Path) -> None:
    """A look at runs that go on reads those with a changed file, and no others."""
    for _ in range(3):
        train(str(tmp_path), 2, 0.1)
    live = LiveReport(tmp_path)
    first = live.data()
    assert (live.data(), live.reads) == (first, 3)
    with (tmp_path / "002/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "time": 5, "metrics": {"lr": 0.5}}\n')
    assert live.data()[0] != first[0]
    assert live.reads == 4


def test_nothing_without_the_secret(tmp_path: Path) -> None:
    """Only the address with the secret, asked for by this machine's own name, is answered."""
    server, address = report_server(tmp_path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host, secret = address.split("/")[2:4]

    def status(target: str, name: str = host) -> int:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
            request = f"GET {target} HTTP/1.0\r\nHost: {name}\r\n\r\n"
            connection.sendall(request.encode())
            return int(connection.makefile().readline().split()[1])

    try:
        own = f"/{secret}/"
        assert [status(own), status(f"{own}data")] == [200, 200]
        for target in ("data", "/data", "/", f"{own}{own[1:]}data", f"{own}data?", "x"):
            assert status(target) == 404, target
        for target in ("data", own, f"{own}data"):
            assert status(target, "elsewhere.example") == 404, target
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_live_page(tmp_path: Path, chromium: Connection) -> None:
    """A served page shows what a run logs meanwhile; without its secret it shows nothing."""
    train(str(tmp_path), 2, 0.1)
    server, address = report_server(tmp_path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        page = Page(chromium)
        page.call("Page.navigate", url=address)
        page.read(
            "new Promise((d) => { document.readyState === 'complete' ? d() : window.onload = d })"
        )
        page.settle()
        assert page.read(NAMES) == ["001"]
        train(str(tmp_path), 2, 0.2)
        renewed = "new Promise((done) => { watchers.push(() => runs.length === 2 && done(true)) })"
        assert page.read(renewed)
        secret = address.rstrip("/").rpartition("/")[2]
        assert page.read("fetch('/').then((answer) => answer.status)") == 404
        assert len(secret) > 20
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import nbclient
import nbformat
import pytest
import torch
from ranks import run_ranks

from batteries import AverageMeter, accumulate, distributed
from batteries.data import DataLoader
from batteries.progress import tqdm


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar() -> None:
    """In a terminal it is tqdm's bar, redrawn in place."""
    file = Terminal()
    assert list(tqdm(range(3), file=file, desc="train", ncols=60)) == [0, 1, 2]
    assert "\rtrain: 100%|" in file.getvalue()


def test_a_program_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program has no stderr (`2>&-`, pythonw), the bar is silent, and the loop runs."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(tqdm(range(3), disable=None)) == [0, 1, 2]
    file = io.StringIO()
    assert list(tqdm(range(3), file=file)) == [0, 1, 2]
    assert "3/3" in file.getvalue()


def test_a_file_gets_lines() -> None:
    """In a log file 100,000 steps are one line, with no carriage return."""
    file = io.StringIO()
    bar = tqdm(range(100_000), file=file, desc="train")
    for step in bar:
        if step % 10 == 0:
            bar.set_postfix_str(f"loss={step}")
    lines = file.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 100% 100000/100000 [")
    assert "loss=99990" in lines[0]
    assert "\r" not in file.getvalue()


def test_samples_and_meters() -> None:
    """Samples a second and the meters are told, as they are when it is drawn."""
    file, loss = io.StringIO(), AverageMeter()
    for step in tqdm(range(4), "epoch 3", batch_size=32, meters={"loss": loss}, file=file):
        loss.update(float(step))
    line = file.getvalue()
    assert line.startswith("epoch 3: 100% 4/4 [")
    assert re.search(r"it/s, [\d,]+ samples/s, loss 1\.5\]$", line.strip())
    hidden = tqdm(range(4), batch_size=32, meters={"loss": loss}, disable=True)
    assert "loss 1.5" in str(hidden)


def test_a_meter_of_nothing() -> None:
    """A meter that has seen nothing yet is not shown; one that has seen NaN is."""
    loss, norm, file = AverageMeter(), AverageMeter(), io.StringIO()
    norm.update(float("nan"))
    for _ in tqdm(range(4), meters={"loss": loss, "norm": norm}, file=file):
        pass
    assert "loss" not in file.getvalue()
    assert "norm nan" in file.getvalue()


def test_what_is_no_meter() -> None:
    """Wrong arguments raise when the bar is made, not at the first line minutes later."""
    for meters in ([AverageMeter()], {"loss": 0.5}, AverageMeter()):
        wrong: Any = meters
        with pytest.raises(TypeError, match=r"meters is .*; expected meters by their names"):
            tqdm(range(4), meters=wrong, disable=True)
    with pytest.raises(TypeError, match="batch_size is '32'; expected one number"):
        tqdm(range(4), batch_size="32", disable=True)  # type: ignore[arg-type]


def test_meters_wait_for_nothing() -> None:
    """A meter is read when something is drawn, not at each step."""

    class Counting(AverageMeter):
        reads = 0

        @property
        def average(self) -> float:
            Counting.reads += 1
            return 0.0

    for _ in tqdm(range(10_000), meters={"loss": Counting()}, file=io.StringIO()):
        pass
    assert 1 <= Counting.reads <= 3


def test_a_file_gets_lines_now_and_then() -> None:
    """`mininterval` says how often a log file gets a line."""
    file = io.StringIO()
    for step in tqdm(range(5), file=file, mininterval=1e-9):
        while step == 2 and file.getvalue() == "":
            time.sleep(0)  # the clock may not tick between two steps
    lines = file.getvalue().splitlines()
    assert 2 <= len(lines) <= 6
    assert lines[-1].startswith("100% 5/5")


def test_nested_bars_in_a_file() -> None:
    """Nested bars write lines too, and no cursor movements."""
    file = io.StringIO()
    for _ in tqdm(range(2), desc="epoch", file=file):
        for _ in tqdm(range(3), desc="batch", file=file, leave=False):
            tqdm.write("text", file=file)
    lines = file.getvalue().splitlines()
    assert lines[:-1] == ["text"] * 6
    assert lines[-1].startswith("epoch: 100% 2/2")


def test_iterables_without_a_length() -> None:
    """A generator's bar counts without a total."""

    def numbers() -> Iterator[int]:
        yield from range(4)

    file = io.StringIO()
    assert list(tqdm(numbers(), file=file)) == [0, 1, 2, 3]
    assert file.getvalue().startswith("4it [")


@pytest.mark.parametrize("batches", [None, 3])
def test_a_resumed_pass(batches: int | None) -> None:
    """After a resume inside of an epoch, the bar begins at the batches before it and ends full."""
    data: Any = range(12)
    killed, resumed = (
        DataLoader(data, 4, shuffle=True, seed=1, batches_per_pass=batches) for _ in range(2)
    )
    next(iter(killed))
    for loop in (resumed, accumulate(resumed, torch.nn.Linear(1, 1), 2)):
        resumed.load_state_dict(killed.state_dict())
        file = Terminal()
        assert len(list(tqdm(loop, file=file, mininterval=0))) == 2
        assert re.findall(r"(\d)/3", file.getvalue())[0] == "1"
        assert re.findall(r"(\d)/3", file.getvalue())[-1] == "3"
    file = Terminal()
    assert len(list(tqdm(resumed, file=file, mininterval=0))) == 3
    assert re.findall(r"(\d)/3", file.getvalue())[0] == "0"


def test_an_empty_loader() -> None:
    """Nothing to do is no error."""
    assert list(tqdm([], file=io.StringIO())) == []


def test_without_an_iterable() -> None:
    """A bar that is moved by hand ends where it was left."""
    file = io.StringIO()
    with tqdm(total=10, file=file) as bar:
        bar.update(4)
    assert file.getvalue().startswith(" 40% 4/10")


def test_the_end_is_written_once() -> None:
    """The last line of a file stands there once."""
    file = io.StringIO()
    list(tqdm(range(3), file=file, mininterval=0))
    assert sum("3/3" in line for line in file.getvalue().splitlines()) == 1


def test_methods_of_a_disabled_bar() -> None:
    """What a program calls on rank 0's bar, the disabled bars of the others take too."""
    bar = tqdm(range(3), disable=True)
    bar.clear()
    bar.refresh()
    bar.set_postfix(loss=1)
    bar.close()


def test_disable() -> None:
    """A disabled bar shows nothing and passes everything."""
    file = Terminal()
    assert list(tqdm(range(3), file=file, disable=True)) == [0, 1, 2]
    assert file.getvalue() == ""


def show_on_each_rank() -> tuple[list[int], str]:
    file = Terminal()
    return list(tqdm(range(3), file=file)), file.getvalue()


@pytest.mark.parametrize("group", [True, False])
def test_rank_zero_only(group: bool) -> None:
    """Only rank 0 shows a bar; every rank gets the items."""
    (items, shown), (other_items, other_shown) = run_ranks(show_on_each_rank, group=group)
    assert items == other_items == [0, 1, 2]
    assert "100%" in shown
    assert other_shown == ""


def add_up_with_a_bar() -> list[int]:
    ranks = (distributed.all_reduce(number) for number in range(3))
    return list(tqdm(ranks, file=io.StringIO()))


def test_a_bar_around_what_ranks_share() -> None:
    """Ranks agree inside a loop with a bar, which rank 0 alone draws."""
    assert run_ranks(add_up_with_a_bar) == [[0, 2, 4]] * 2


def test_a_notebook_gets_a_widget() -> None:
    """In a notebook the bar is a widget, with the items counted."""
    code = (
        "import warnings\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('error')\n"
        "    from batteries.progress import tqdm\n"
        "    for _ in tqdm(range(3), desc='train'): pass"
    )
    cell = nbformat.v4.new_code_cell(code)  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert "application/vnd.jupyter.widget-view+json" in notebook.cells[0].outputs[0]["data"]
    [widgets] = notebook.metadata["widgets"].values()
    states = [widget["state"] for widget in widgets["state"].values()]
    assert any(state.get("max") == state.get("value") == 3.0 for state in states)
    assert any("100%" in str(state.get("value")) for state in states)


def test_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file the bar goes to what stderr is when it is made."""
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    list(tqdm(range(2)))
    assert stderr.getvalue().startswith("100% 2/2")

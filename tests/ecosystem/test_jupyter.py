from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

INTERRUPTED = """
import os, signal
from batteries import *
from batteries.data import DataLoader
run = start_run("runs", {"lr": 0.1})
loader = DataLoader(range(8), 2, num_workers=1, seed=1)
print(run.resumed)
for batch in loader:
    os.kill(os.getpid(), signal.SIGINT)
    import time; time.sleep(60)
"""
AGAIN = """
run = start_run("runs", {"lr": 0.1})
loader.load_state_dict(loader.state_dict())
print(run.resumed, len(list(loader)))
"""
RESTARTED = """
from batteries import *
with start_run("runs", {"lr": 0.1}) as run:
    print(run.resumed)
"""

CELLS = [
    """
import torch
from batteries import *
from batteries.data import DataLoader
from batteries.progress import tqdm
run = start_run("runs", {"lr": 0.1})
""",
    "1 / 0",
    """
run = start_run("runs", {"lr": 0.1})
loader = DataLoader(range(8), 2, num_workers=2, seed=1)
print([batch.tolist() for batch in tqdm(loader)])
run.close()
""",
]


def executed(*cells: str) -> list[Any]:
    """The cells after a kernel of their own has run them."""
    nbformat: Any = pytest.importorskip("nbformat")
    client: Any = pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True).execute()
    return list(notebook.cells)


def text_of(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def states() -> list[str]:
    record = json.loads(Path("runs/001/run.json").read_text())
    return [session["state"] for session in record["sessions"]]


@pytest.mark.beside("Jupyter", package="nbclient")
@pytest.mark.filterwarnings("ignore")
def test_cells() -> None:
    """A cell can resume a run after a cell has failed; workers and a bar work in a kernel."""
    cells = executed(*CELLS)
    errors = [
        output["ename"]
        for cell in cells
        for output in cell.outputs
        if output.output_type == "error"
    ]
    assert errors == ["ZeroDivisionError"]
    assert "[[0, 1], [2, 3], [4, 5], [6, 7]]" in text_of(cells[2])
    assert states() == ["stopped", "finished"]


@pytest.mark.beside("Jupyter", package="nbclient")
@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_cell() -> None:
    """A cell that is interrupted may run again, and a restarted kernel resumes its run."""
    first, again = executed(INTERRUPTED, AGAIN)
    assert text_of(first).split() == ["False"]
    assert text_of(again).split() == ["True", "3"]
    executed(INTERRUPTED.replace("runs", "others"))
    [restarted] = executed(RESTARTED.replace("runs", "others"))
    assert text_of(restarted).split() == ["True"]


@pytest.mark.beside("Jupyter", package="nbclient")
@pytest.mark.filterwarnings("ignore")
def test_a_program_in_a_notebook() -> None:
    """`%run` may start the program of a run twice; the second start resumes the run."""
    Path("program.py").write_text(
        "from batteries import start_run\nprint(start_run('runs').resumed)"
    )
    first, second = executed("%run program.py", "%run program.py")
    assert (text_of(first), text_of(second)) == ("False\n", "True\n")
    assert states()[0] == "stopped"

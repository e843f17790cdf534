from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.beside("Jupyter", package="nbclient")
@pytest.mark.filterwarnings("ignore")
def test_cells() -> None:
    """A cell can resume a run after a cell has failed; workers and a bar work in a kernel."""
    nbformat: Any = pytest.importorskip("nbformat")
    client: Any = pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True).execute()
    errors = [
        output["ename"]
        for cell in notebook.cells
        for output in cell.outputs
        if output.output_type == "error"
    ]
    assert errors == ["ZeroDivisionError"]
    shown = [output["text"] for output in notebook.cells[2].outputs if "text" in output]
    assert any("[[0, 1], [2, 3], [4, 5], [6, 7]]" in text for text in shown)
    record = json.loads(Path("runs/001/run.json").read_text())
    assert [session["state"] for session in record["sessions"]] == ["stopped", "finished"]

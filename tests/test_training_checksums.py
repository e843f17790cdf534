"""Where two runs part that should be equal."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard

from batteries import distributed, start_run
from batteries.cli import main
from batteries.scoreboard import Parting, first_difference
from batteries.training import log_checksums


def train(run: str, *, disturbed: str = "", steps: int = 6) -> None:
    """Six steps; at the fourth, something is another bit than in other runs."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        batch: dict[str, Any] = {
            "x": torch.rand(3, 4),
            "id": np.arange(3),
            "name": ["a", "b"],
            "n": step,
        }
        if step == 4 and disturbed == "batch":
            batch["id"] = np.array([0, 2, 1])
        if step == 4 and disturbed == "parameter":
            model[2].bias.data += 1e-6
        optimizer.zero_grad()
        model(batch["x"]).mean().backward()
        if step == 4 and disturbed == "gradient":
            model[0].weight.grad[0, 0] = -0.0 * model[0].weight.grad[0, 0]
        log_checksums(run, step, model, batch)
        optimizer.step()


def compared(other: str, *options: str) -> str:
    done = CliRunner().invoke(main, ["compare", "runs/a/001", f"runs/{other}/001", *options])
    assert done.exit_code == 0, done.output
    return done.output if options else " ".join(done.output.split())


def test_where_runs_part() -> None:
    """The step and the tensor are those that were disturbed; what follows is not told first."""
    for run in ("a", "same", "gradient"):
        start_run(f"runs/{run}").close()
    train("runs/a/001")
    train("runs/same/001")
    assert first_difference("runs/a/001", "runs/same/001") == Parting(None, [], 6)
    for disturbed, first in (
        ("batch", "batch['id']"),
        ("parameter", "parameter 2.bias"),
        ("gradient", "gradient of 0.weight"),
    ):
        train(f"runs/{disturbed}/001", disturbed=disturbed)
        found = first_difference("runs/a/001", f"runs/{disturbed}/001")
        assert found is not None
        assert (found.step, found.names[0], found.equal) == (4, first, 3)
    told = "the runs differ from step 4 on, first in gradient of 0.weight "
    told += "(different tensors in this step: 1; equal steps before it: 3)"
    assert compared("gradient").count(told) == 1
    assert "the checksums are equal at all steps (6)" in compared("same")
    assert json.loads(compared("gradient", "--json"))["partings"][0]["step"] == 4


def test_what_came_again_and_what_is_foreign() -> None:
    """Of a step that came twice the last counts; torn and foreign lines are left out."""
    train("runs/a")
    train("runs/b", disturbed="batch", steps=4)
    path = Path("runs/b/checksums.jsonl")
    lines = path.read_text().splitlines()
    good = Path("runs/a/checksums.jsonl").read_text().splitlines()[3]
    foreign = ["", "[]", '{"step": 4}', '{"checksums": {"a": "b"}}', '{"step": 2, "checksums": 1}']
    path.write_text("\n".join([*lines, good, *foreign, json.dumps({"step": 1})[:-1]]))
    assert first_difference("runs/a", "runs/b") == Parting(None, [], 4)
    assert first_difference("runs/a", "runs/none") is None


@dataclass
class Batch:
    x: Any


def sums_of(batch: Any) -> dict[str, str]:
    log_checksums("runs/a", 1, nn.Linear(1, 1), batch)
    found = json.loads(Path("runs/a/checksums.jsonl").read_text().splitlines()[-1])["checksums"]
    return {name: value for name, value in found.items() if name.startswith("batch")}


def test_a_small_difference_in_any_form() -> None:
    """One number of 2,000 in the sixth digit, a shape, a dtype: each is another checksum."""
    one = torch.linspace(0, 1, 2000)
    two = one.clone()
    two[1000] += 1e-6
    texts = np.array([str(number) for number in range(2000)], dtype=object)
    forms: list[tuple[Any, Any]] = [
        (Batch(one), Batch(two)),
        ({"a": [Batch((one,))]}, {"a": [Batch((two,))]}),
        (texts, np.where(texts == "1000", "other", texts).astype(object)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        ({"a", "b"}, {"a", "c"}),
    ]
    for first, second in forms:
        assert sums_of(first) == sums_of(copy.deepcopy(first)) != sums_of(second), first


def test_batches_that_have_no_checksum() -> None:
    """An object whose contents are not known is refused: its text says too little, or too much."""

    class Graph:
        x = torch.zeros(2)

    with pytest.raises(TypeError, match=r"batch\['g'\] is a Graph; .* pass its tensors"):
        log_checksums("runs/a", 1, nn.Linear(1, 1), {"g": Graph()})


def on_ranks() -> None:
    torch.manual_seed(0)
    model: Any = fully_shard(nn.Linear(3, 5))
    model(torch.full((2, 3), 1.0 + distributed.rank())).sum().backward()
    log_checksums("runs/ranks", 1, model, distributed.rank())
    log_checksums("runs/ranks", 2, model, distributed.rank() // 2)


def test_ranks() -> None:
    """Rank 0 writes; what differs between ranks, as a batch and a part do, has one for each."""
    run_ranks(on_ranks)
    text = Path("runs/ranks/checksums.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert [*lines[0]["checksums"]][:3] == ["batch on rank 0", "batch on rank 1",
                                            "parameter weight on rank 0"]  # fmt: skip
    assert "batch" in lines[1]["checksums"]


def test_links() -> None:
    """Nothing is written through a link that leads out of the run."""
    Path("runs/a").mkdir(parents=True)
    Path("elsewhere").touch()
    Path("runs/a/checksums.jsonl").symlink_to(Path("elsewhere").resolve())
    with pytest.raises(PermissionError):
        log_checksums("runs/a", 1, nn.Linear(1, 1))

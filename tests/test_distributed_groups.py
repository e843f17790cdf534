"""Some of the ranks: what is done together, divided and averaged among them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import IterableDataset

from batteries import AverageMeter, Predictions, accumulate, distributed
from batteries.data import DataLoader
from batteries.distributed._groups import ranks_of

NUMBERS: Any = range(10)


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(10))


def meet(form: str) -> Any:
    """A mesh of data-parallel rows and tensor-parallel columns: this rank's column."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    groups = {"mesh": mesh["dp"], "pair": (mesh, "dp"), "group": mesh.get_group("dp")}
    return groups[form]


def do_all(form: str) -> dict[str, Any]:
    group, rank = meet(form), distributed.rank()
    loader: DataLoader[torch.Tensor] = DataLoader(
        NUMBERS, batch_size=2, shuffle=True, seed=1, group=group
    )
    own, drawn = [], []
    for batch in loader:
        own += batch.tolist()
        drawn.append(torch.rand(()).item())
    meter = AverageMeter()
    meter.update(float(rank // 2))
    outputs = Predictions(10, duplicates="drop", group=group)
    outputs.add(own, value=torch.tensor(own) * 2)
    [value] = outputs.gather()
    [at_zero] = outputs.gather(0)
    outputs.save(f"{form}-{rank % 2}.npy")
    error = ""
    try:
        distributed.together(lambda: 1 // (3 - rank), group=group)
    except ZeroDivisionError as raised:
        error = str(raised)
    model = nn.Linear(1, 1)
    windows = accumulate(loader, model, accumulation_steps=2)
    return {
        "ranks": ranks_of(group)[:2],
        "samples": own,
        "drawn": drawn,
        "stream": torch.cat(
            list(DataLoader(Numbers(), batch_size=5, group=group, sharded=False))
        ).tolist(),
        "weights": [window.weight for _, window in windows],
        "average": meter.all_reduce(group),
        "value": value.tolist(),
        "at_zero": at_zero is not None,
        "gathered": distributed.all_gather(rank, group=group),
        "ragged": distributed.all_gather([rank] * rank, group=group),
        "from 1": distributed.broadcast(rank, src=1, group=group),
        "sum": distributed.all_reduce(torch.tensor(rank), group=group).item(),
        "error": error,
    }


@pytest.mark.parametrize("form", ["mesh", "pair", "group"])
def test_a_dimension_of_a_mesh(form: str) -> None:
    """Along a mesh's dimension samples are divided, and across it they are the same."""
    ranks = run_ranks(do_all, form, world_size=4)
    for rank, told in enumerate(ranks):
        row, column = divmod(rank, 2)
        assert told["ranks"] == (row, 2)
        for name in ("samples", "drawn", "stream", "weights", "value"):
            assert told[name] == ranks[rank ^ 1][name]
        assert told["drawn"] != ranks[rank ^ 2]["drawn"]
        assert sorted(told["samples"] + ranks[rank ^ 2]["samples"]) == list(range(10))
        assert sorted(told["stream"] + ranks[rank ^ 2]["stream"]) == list(range(10))
        assert told["weights"] == [0.5, 0.5, 1.0]
        assert told["value"] == list(range(0, 20, 2))
        assert told["at_zero"] == (row == 0)
        assert told["average"] == 0.5
        assert told["gathered"] == [column, column + 2]
        assert told["ragged"] == [[column] * column, [column + 2] * (column + 2)]
        assert told["from 1"] == column + 2
        assert told["sum"] == 2 * column + 2
        assert bool(told["error"]) == (column == 1)


def evaluate_alone() -> list[int]:
    alone = dist.new_group([0])
    with distributed.rank_zero_first():
        if distributed.is_main():
            outputs = Predictions(10, group=alone)
            for batch in DataLoader[torch.Tensor](NUMBERS, batch_size=4, group=alone):
                outputs.add(batch, value=batch)
            return outputs.gather()[0].tolist()  # type: ignore[no-any-return]
    with pytest.raises(ValueError, match="rank 1 is not in the group that it passed"):
        DataLoader[torch.Tensor](NUMBERS, group=alone)
    return []


def test_rank_zero_alone() -> None:
    """With a group of rank 0 alone, rank 0 evaluates while the others do something else."""
    assert run_ranks(evaluate_alone) == [list(range(10)), []]


def pass_the_wrong_ones() -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    with pytest.raises(ValueError, match=r'the mesh has 2 dimensions.*\(mesh, "dp"\)'):
        ranks_of(mesh)
    with pytest.raises(ValueError, match=r"no dimension 'data'; .* are \('dp', 'tp'\)"):
        AverageMeter().all_reduce((mesh, "data"))
    with pytest.raises(TypeError, match="group is a str; expected a ProcessGroup"):
        accumulate([], nn.Linear(1, 1), group="dp")  # type: ignore[arg-type]
    for group in ((mesh, "dp", "tp"), (None, "dp")):
        with pytest.raises(TypeError, match="group is a tuple; expected a ProcessGroup"):
            distributed.barrier(group)  # type: ignore[arg-type]


def test_what_is_no_group() -> None:
    """What is no group is refused where it is passed, with what is expected."""
    assert run_ranks(pass_the_wrong_ones, world_size=1) == [None]

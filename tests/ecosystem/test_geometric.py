from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from batteries import accumulate, to_device
from batteries.data import DataLoader

pytestmark = [
    pytest.mark.beside(
        "PyG",
        package="torch-geometric",
        remedy="Pass `collate_fn=Batch.from_data_list` to the loader, and "
        "`count=lambda batch: batch.num_graphs` to `accumulate`.",
    ),
    pytest.mark.filterwarnings("ignore"),
]
geometric = pytest.importorskip("torch_geometric", reason="torch-geometric: make ecosystem")


def loader(batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Ten rings of 3 to 12 nodes, each with its size as the target."""
    from torch_geometric.data import Batch, Data  # type: ignore[import-not-found]

    rings = []
    for size in range(3, 13):
        nodes = torch.arange(size)
        edges = torch.stack([nodes, nodes.roll(1)])
        rings.append(Data(x=torch.ones(size, 1), edge_index=edges, y=torch.tensor([float(size)])))
    options: dict[str, Any] = {"collate_fn": Batch.from_data_list, "num_workers": workers}
    return DataLoader(rings, batch_size, shuffle=True, seed=3, **options)  # type: ignore[arg-type]


class Sums(nn.Module):
    """A layer of a graph, and the sum over each graph's nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = geometric.nn.GraphConv(1, 1)

    def forward(self, batch: Any) -> torch.Tensor:
        nodes = self.layer(batch.x, batch.edge_index)
        sums: torch.Tensor = geometric.nn.global_add_pool(nodes, batch.batch)
        return sums.flatten()


def test_graphs() -> None:
    """Each graph comes once, whole, with any workers and after a resume."""
    first, other = loader(3, workers=2), loader(3)
    batches = list(islice(first, 2))
    other.load_state_dict(first.state_dict())
    batches = [to_device(batch, "cpu") for batch in [*batches, *other]]
    sizes = [graph.num_nodes for batch in batches for graph in batch.to_data_list()]
    assert sorted(sizes) == [*range(3, 13)]
    assert [y for batch in batches for y in batch.y.tolist()] == sizes


def test_the_big_batch() -> None:
    """Windows of three batches, the last one short, have the gradient of all graphs at once."""
    small, big = Sums(), Sums()
    for batch, window in accumulate(loader(4), small, 3, count=lambda batch: batch.num_graphs):
        with window:
            window.backward((small(batch) - batch.y).square().mean())
    (batch,) = loader(10)
    (big(batch) - batch.y).square().mean().backward()
    for one, two in zip(small.parameters(), big.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)

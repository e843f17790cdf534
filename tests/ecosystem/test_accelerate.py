from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from batteries.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves
PREPARE = (
    "Leave the loader out of `accelerator.prepare()`, which says so itself; move its batches with "
    "`to_device(batch, accelerator.device)`. Model and optimizer may be prepared."
)


def loader() -> DataLoader[Any]:
    data = TensorDataset(torch.arange(10.0)[:, None])
    return DataLoader(data, batch_size=4, shuffle=True, seed=1)


@pytest.mark.beside("accelerate", remedy=PREPARE)
def test_accelerate() -> None:
    """Our loader may not be prepared, with advice; the model may, and trains the same."""
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed: make ecosystem"
    )
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(TypeError, match=r"leave .* out of accelerator.prepare\(\)"):
        accelerator.prepare(loader())
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    for (x,) in loader():
        seen += x.flatten().tolist()
        accelerator.backward(prepared(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    assert seen == [each for (x,) in loader() for each in x.flatten().tolist()]


@pytest.mark.beside("Fabric", package="lightning")
def test_fabric() -> None:
    """Fabric's loader of ours gives the same batches, and ours knows the position."""
    fabrics = pytest.importorskip("lightning.fabric", reason="lightning is not installed")
    fabric = fabrics.Fabric(accelerator="cpu", devices=1)
    own, other = loader(), loader()
    batches = iter(fabric.setup_dataloaders(own))
    (first,) = next(batches)
    assert torch.equal(first, next(iter(loader()))[0])
    other.load_state_dict(own.state_dict())
    for (ours,), (theirs,) in zip(batches, other, strict=True):
        assert torch.equal(ours, theirs)

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from batteries import make_checkpoint
from batteries.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves
PREPARE = (
    "Do not pass our loader to `accelerator.prepare()`; an error says so if you do. Move its "
    "batches with `to_device(batch, accelerator.device)`. You can prepare model and optimizer."
)


def loader() -> DataLoader[Any]:
    data = TensorDataset(torch.arange(10.0)[:, None])
    return DataLoader(data, batch_size=4, shuffle=True, seed=1)


@pytest.mark.beside("accelerate", remedy=PREPARE)
def test_accelerate() -> None:
    """`prepare` of our loader raises an error; a prepared model trains as usual."""
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed: make ecosystem"
    )
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(TypeError, match=r"leave .* out of accelerator.prepare\(\)"):
        accelerator.prepare(loader())
    for make in (accelerate.data_loader.prepare_data_loader, accelerate.skip_first_batches):
        with pytest.raises(TypeError, match="Iterate over the loader itself"):
            next(iter(make(loader())))
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


@pytest.mark.beside("accelerate", remedy=PREPARE)
def test_the_block_of_the_page() -> None:
    """The block about accelerate in `docs/coming-from.md` runs, and resumes."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: make ecosystem")
    page = Path(__file__).parents[2] / "docs" / "coming-from.md"
    [block] = re.findall(r"```python\n(from accelerate .*?)```", page.read_text(), re.DOTALL)
    positions, weights = [], []
    for _ in range(2):
        model = nn.Linear(1, 1)
        names: dict[str, Any] = {"model": model, "dataset": TensorDataset(torch.ones(64, 1))}
        exec(block, names | {"optimizer": torch.optim.SGD(model.parameters())}, names)
        loader, manager = names["loader"], names["manager"]
        positions.append(loader.state_dict())
        weights.append(model.weight.tolist())  # of the second one, after the resume
        next(iter(loader))
        saved = make_checkpoint("train", 1, names["model"], names["optimizer"], loader=loader)
        manager.process(score=1.0, epoch=1, checkpoint=saved)
    assert positions[0] != positions[1]
    assert weights[0] == weights[1]


@pytest.mark.beside("Fabric", package="lightning")
def test_fabric() -> None:
    """A loader that Fabric has set up gives the same batches, and our loader has the position."""
    fabrics = pytest.importorskip("lightning.fabric", reason="lightning is not installed")
    fabric = fabrics.Fabric(accelerator="cpu", devices=1)
    own, other = loader(), loader()
    batches = iter(fabric.setup_dataloaders(own))
    (first,) = next(batches)
    assert torch.equal(first, next(iter(loader()))[0])
    other.load_state_dict(own.state_dict())
    for (ours,), (theirs,) in zip(batches, other, strict=True):
        assert torch.equal(ours, theirs)

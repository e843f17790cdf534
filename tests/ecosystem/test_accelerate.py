from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import vision
from ranks import run_ranks
from torch import nn
from torch.utils.data import TensorDataset

from batteries import make_checkpoint
from batteries.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves
PREPARE = (
    "Do not pass our loader to `accelerator.prepare()`; an error says so if you do. Move its "
    "batches with `to_device(batch, accelerator.device)`. You can prepare model and optimizer."
)


def loader(shuffle: bool = True) -> DataLoader[Any]:
    data = TensorDataset(torch.arange(10.0)[:, None])
    return DataLoader(data, batch_size=4, shuffle=shuffle, seed=1)


@pytest.mark.beside("accelerate", remedy=PREPARE)
def test_accelerate() -> None:
    """`prepare` of our loader raises an error; a prepared model trains as usual."""
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed: make ecosystem"
    )
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(TypeError, match=r"leave .* out of accelerator.prepare\(\)"):
        accelerator.prepare(loader())
    prepare = accelerate.data_loader.prepare_data_loader
    seedable = functools.partial(prepare, use_seedable_sampler=True)
    halves = functools.partial(prepare, num_processes=2, process_index=1)
    for make in (prepare, seedable, halves, accelerate.skip_first_batches):
        for shuffle in (True, False):
            with pytest.raises(TypeError, match="Iterate over the loader itself"):
                next(iter(make(loader(shuffle))))
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


def of_each_rank(distributed_sampler: bool) -> list[Any]:
    vision.prepare()  # lightning imports torchvision
    fabrics: Any = importlib.import_module("lightning.fabric")
    fabric = fabrics.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    theirs = fabric.setup_dataloaders(loader(), use_distributed_sampler=distributed_sampler)
    return [each for (x,) in theirs for each in x.flatten().tolist()]


@pytest.mark.beside("Fabric", package="lightning")
@pytest.mark.parametrize("distributed_sampler", [True, False])
def test_fabric_on_two_ranks(distributed_sampler: bool) -> None:
    """On two ranks, Fabric replaces nothing in our loader, and each sample comes once."""
    pytest.importorskip("lightning.fabric", reason="lightning is not installed")
    first, second = run_ranks(of_each_rank, distributed_sampler, world_size=2, group=False)
    assert sorted(first + second) == list(range(10))
    assert first + second != list(range(10))


@pytest.mark.beside("transformers")
def test_trainer() -> None:
    """A Trainer that gets our loader trains in its order, and cannot skip batches silently."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    seen: list[float] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> Any:
            seen.extend(x.flatten().tolist())
            return {"loss": (x * self.weight - 1).square().mean()}

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, 4, shuffle=True, seed=1)

    data: Any = [{"x": torch.tensor([float(number)])} for number in range(16)]
    options = {"report_to": [], "use_cpu": True, "save_steps": 2, "logging_strategy": "no"}
    args = transformers.TrainingArguments("out", num_train_epochs=2, disable_tqdm=True, **options)
    Trainer(model=Model(), args=args, train_dataset=data).train()
    own: DataLoader[Any] = DataLoader(data, 4, shuffle=True, seed=1)
    assert seen == [
        each for _ in range(2) for batch in own for each in batch["x"].flatten().tolist()
    ]
    with pytest.raises(TypeError, match="to go on in the middle of an epoch, load its state"):
        Trainer(model=Model(), args=args, train_dataset=data).train("out/checkpoint-2")

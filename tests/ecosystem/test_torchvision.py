from __future__ import annotations

import runpy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from vision import PARTLY

from batteries import make_checkpoint, save_checkpoint
from batteries.data import DataLoader

pytestmark = [
    pytest.mark.beside("torchvision", remedy=PARTLY),
    pytest.mark.filterwarnings("ignore"),
]
v2 = pytest.importorskip(
    "torchvision.transforms.v2", reason="torchvision is not installed: make ecosystem"
)
SIZE = 12


class Images(Dataset[Any]):
    """Of pixels that tell where they lie: what a transform drew can be read from them."""

    def __init__(self) -> None:
        self.transform = v2.Compose(
            [v2.RandomCrop(4), v2.RandomHorizontalFlip(), v2.ToPureTensor()]
        )

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return index, self.transform(torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE))


def draws(batches: Any) -> list[tuple[int, int, bool]]:
    """Index, corner and flip of each image; the rest of it is checked by hand."""
    seen = []
    for indices, images in batches:
        for index, image in zip(indices.tolist(), images, strict=True):
            flipped = bool(image[0, 0, 0] > image[0, 0, 1])
            upright = image.flip(-1) if flipped else image
            corner = int(upright[0, 0, 0])
            rows = torch.arange(4)[:, None] * SIZE + torch.arange(4)
            assert torch.equal(upright[0], corner + rows)
            seen.append((index, corner, flipped))
    return seen


def loader(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Images(), 4, shuffle=True, seed=3, num_workers=workers)


def test_transforms() -> None:
    """Each image has its own draws, with any workers and after a resume; others in each epoch."""
    data = loader()
    expected, later = draws(data), draws(data)
    assert len({(corner, flipped) for _, corner, flipped in expected}) > 12
    assert sorted(expected) != sorted(later)
    first, other = loader(2), loader()
    first.check()
    begun = draws(islice(first, 3))
    other.load_state_dict(first.state_dict())
    assert begun + draws(other) == expected


def test_batches_of_a_collate_fn() -> None:
    """MixUp in a `collate_fn` draws by the batch: the same after a resume, with any workers."""
    mix = v2.MixUp(num_classes=24)
    options: dict[str, Any] = {"shuffle": True, "seed": 3, "collate_fn": Mixed(mix)}
    first, other = DataLoader(Images(), 4, **options), DataLoader(Images(), 4, **options)
    expected = list(first)
    first.set_epoch(0)
    begun = list(islice(first, 3))
    other.load_state_dict(first.state_dict())
    for (images, labels), (ours, own) in zip(expected, [*begun, *other], strict=True):
        assert torch.equal(images, ours)
        assert torch.equal(labels, own)
        assert labels.sum(1).allclose(torch.ones(len(labels)))


class Mixed:
    def __init__(self, mix: Any) -> None:
        self.mix = mix

    def __call__(self, samples: list[Any]) -> Any:
        indices, images = torch.utils.data.default_collate(samples)
        return self.mix(images.float(), indices)


def test_the_example(tmp_path: Path) -> None:
    """The option of examples/images augments, with equal images with any workers."""
    example = Path(__file__).parents[2] / "examples/images/datasets.py"
    program = runpy.run_path(str(example))
    (tmp_path / "noise").mkdir()
    for number in range(8):
        pixels = torch.randint(256, (SIZE, SIZE, 3), dtype=torch.uint8).numpy()
        program["Image"].fromarray(pixels).save(tmp_path / f"noise/{number}.png")
    data = program["ImageFolder"](tmp_path, program["torchvision_transforms"](SIZE))
    alone, divided = (DataLoader(data, 8, seed=3, num_workers=workers) for workers in (0, 2))
    [(images, _)], [(same, _)], [(later, _)] = alone, divided, alone
    assert torch.equal(images, same)
    assert not torch.equal(images, later)


def test_models() -> None:
    """A checkpoint of a model is what torch itself reads into another."""
    models = pytest.importorskip("torchvision.models")
    saved, other = models.squeezenet1_1(num_classes=2), models.squeezenet1_1(num_classes=2)
    save_checkpoint(make_checkpoint("train", 1, saved), "last.pth")
    other.load_state_dict(torch.load("last.pth")["model_state_dict"])
    for one, two in zip(saved.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)

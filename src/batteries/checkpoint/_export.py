"""Write a checkpoint in another form: shards as one file, weights as safetensors."""

from __future__ import annotations

import torch

from batteries._files import PathLike, refuse_source, write_whole
from batteries.checkpoint._read import is_sharded, named_weights, opened
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._read_safetensors import library
from batteries.checkpoint._read_shards import Shards
from batteries.checkpoint._write import leaves_of, save_checkpoint


def consolidate(directory: PathLike, out: PathLike) -> None:
    """Make one file of a sharded checkpoint, in this process alone, with memory for all of it.

    >>> manager = CheckpointManager("runs/large", sharded=True)
    >>> manager.process(0.5, epoch=1, checkpoint=make_checkpoint("train", 1, nn.Linear(2, 1)))
    >>> consolidate(manager.best_path, "best.pth")
    >>> torch.load("best.pth")["epoch"]
    1

    Raises:
        CheckpointError: Damaged, or not a sharded checkpoint.
    """
    if not is_sharded(directory):
        raise CheckpointError(
            f"{directory} is not a sharded checkpoint; expected a directory such as last.dcp"
        )
    save_checkpoint(Shards(directory, alone=True).read(lambda *_: torch.device("cpu")), out)


def export_safetensors(path: PathLike, out: PathLike, *, key: str = "model") -> None:
    """Write the weights of a checkpoint as a `.safetensors` file.

    >>> save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1)), "best.pth")
    >>> export_safetensors("best.pth", "best.safetensors")
    >>> sorted(load_checkpoint("best.safetensors")["model_state_dict"])
    ['bias', 'weight']

    Weights that share their memory are written under each of their names. This process alone reads
    a sharded checkpoint, and only the weights in it.

    Args:
        key: The name of the weights: "ema" for the averaged model of `EMA`.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or it has no such weights.
        ModuleNotFoundError: safetensors is not installed.
    """
    refuse_source(out, [path])
    with opened(path, alone=True) as file:
        weights = named_weights(file.contents, key)
        if weights is None or not all(map(torch.is_tensor, weights.values())):
            raise CheckpointError(
                f"{path} has no weights to export under {key}_state_dict; it has "
                f"{', '.join(map(str, file.contents)) or 'nothing'}"
            )
        wanted, cpu = {id(leaf) for leaf in leaves_of(weights)}, torch.device("cpu")
        own = file.read(lambda _, leaf: cpu if id(leaf) in wanted or not leaf.is_meta else None)
        file.verify()
    own = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in (named_weights(own, key) or {}).items()
    }
    data = library("export_safetensors").save(own, metadata={"format": "pt"})
    with write_whole(out) as target:
        target.write(data)

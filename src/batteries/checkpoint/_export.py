"""Write a checkpoint in another form: shards as one file, weights as safetensors."""

from __future__ import annotations

import torch

from batteries._files import PathLike, refuse_source, write_whole
from batteries.checkpoint._contents import state_key
from batteries.checkpoint._read import is_sharded, named_weights, opened
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._read_safetensors import library
from batteries.checkpoint._read_shards import Shards
from batteries.checkpoint._write import leaves_of, save_checkpoint


def consolidate(directory: PathLike, out: PathLike) -> None:
    """Make one file of a sharded checkpoint.

    >>> manager = CheckpointManager("runs/large", sharded=True)
    >>> manager.process(0.5, epoch=1, checkpoint=make_checkpoint("train", 1, nn.Linear(2, 1)))
    >>> consolidate(manager.best_path, "best.pth")
    >>> torch.load("best.pth")["epoch"]
    1

    Call it in one process. This process needs memory for all tensors.

    Args:
        directory: The sharded checkpoint, such as `last.dcp`.
        out: The new file, such as "best.pth". It replaces a file of this name.

    Raises:
        CheckpointError: Damaged, or not a sharded checkpoint.
        OSError: The new file cannot be written.
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

    Weights that share their memory are written under each of their names. Call this in one process,
    also for a sharded checkpoint, of which it reads only the weights.

    Args:
        path: A checkpoint in any form that `load_checkpoint` reads, except a bare state dict.
        out: The new file. It replaces a file of this name.
        key: The name of the weights: "ema" for the averaged model of `EMA`.

    Raises:
        FileNotFoundError: No such file, or no directory for the new one.
        CheckpointError: Damaged, it has no such weights, or not all of them are tensors.
        ValueError: `out` is `path`.
        OSError: The new file cannot be written.
        ModuleNotFoundError: safetensors is not installed.
    """
    refuse_source(out, [path])
    with opened(path, alone=True) as file:
        weights = named_weights(file.contents, key)
        if weights is None:
            raise CheckpointError(
                f"{path} has no weights to export under {state_key(key)}; it has "
                f"{', '.join(map(str, file.contents)) or 'nothing'}; choose other weights with key="
            )
        for name, value in weights.items():
            if not torch.is_tensor(value):
                raise CheckpointError(
                    f"{state_key(key)}[{name!r}] in {path} is a {type(value).__name__}, but "
                    ".safetensors holds only tensors: leave it out of the state that you save, or "
                    "choose other weights with key="
                )
        wanted, cpu = {id(leaf) for leaf in leaves_of(weights)}, torch.device("cpu")
        own = file.read(lambda _, leaf: cpu if id(leaf) in wanted or not leaf.is_meta else None)
        file.verify()
    own = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in (named_weights(own, key) or {}).items()
    }
    data = library("export_safetensors").save(own, metadata={"format": "pt"})
    with write_whole(out, len(data)) as target:
        target.write(data)

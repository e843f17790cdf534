"""Checkpoints in every form: a file of ours or of torch.save, a sharded directory, safetensors."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from batteries._device import known_device
from batteries._files import PathLike, write_whole
from batteries._foreign import Most, brief, check, open_regular, read_json
from batteries._optional import import_optional
from batteries._rundir.names import epoch_of
from batteries.checkpoint._archive import INDEX
from batteries.checkpoint._contents import Checkpoint, rebuilt
from batteries.checkpoint._sharded import Shards, peek_shards, read_shards, verify_shards
from batteries.checkpoint._storage import CheckpointError, peek_file, read_file, save_checkpoint

_HEADER = 10**8  # bytes, as safetensors itself has it


def read_checkpoint(path: PathLike, map_location: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint whose every byte is as it was written.

    >>> save_checkpoint({"model_state_dict": {}, "epoch": 1}, "last.pth")
    >>> read_checkpoint("last.pth")["epoch"]
    1

    The bytes that are verified are the bytes that the tensors lie in. A file that carries no
    digest (of `torch.save`, say) is held against the checksums of its zip records. `.safetensors`
    files, which carry neither, become `{"model_state_dict": ...}`, and so does the Hub's
    `model.safetensors.index.json` with the files that it names. The tensors of a sharded
    checkpoint come whole; where there is a process group all ranks call it then.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown `map_location`.
        CheckpointError: Damaged, cut short, or not a checkpoint.
    """
    if is_sharded(path):
        return read_shards(path, lambda _, whole: torch.empty_like(whole, device=map_location))
    if _is_index(path):
        return _all_parts(path, lambda part: read_checkpoint(part, map_location))
    if _is_safetensors(path):
        at_once = _safetensors("read_checkpoint").load
        return {
            "model_state_dict": _weights(lambda path: at_once(_all_of(path)), path, map_location)
        }
    return read_file(path, map_location)


def peek(path: PathLike) -> Checkpoint:
    """Everything in a checkpoint but the numbers in its tensors, at once, whatever the size.

    >>> save_checkpoint({"model_state_dict": nn.Linear(2, 1).state_dict(), "epoch": 1}, "last.pth")
    >>> peek("last.pth")["model_state_dict"]["weight"].shape
    torch.Size([1, 2])

    Tensors have their shapes and dtypes, and lie on the `meta` device. Nothing is verified.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Not a checkpoint.
    """
    if is_sharded(path):
        return peek_shards(path)
    if _is_index(path):
        return _all_parts(path, peek)
    if _is_safetensors(path):
        lazily = _safetensors("peek").load_file  # maps the file
        return {"model_state_dict": _weights(lazily, path, "meta")}
    return peek_file(path)


def latest(logdir: PathLike) -> Path | None:
    """The newest checkpoint of a directory that is as it was written; None if there is none.

    >>> latest("runs/nothing") is None
    True

    A damaged one is warned about and passed over: first the last, then the epochs from the
    newest, then the best. Where there are sharded ones in a process group, all ranks call it.
    """
    for path in newest_first(logdir):
        try:
            verify_shards(path) if is_sharded(path) else read_file(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; an older one is taken", stacklevel=2)
        else:
            return path
    return None


def newest_first(logdir: PathLike) -> list[Path]:
    """The checkpoints of a directory: the last, then the epochs from the newest, then the best.

    Raises:
        NotADirectoryError: It is a checkpoint itself.
    """
    folder = Path(logdir)
    if folder.is_file() or (folder.suffix == ".dcp" and is_sharded(folder)):
        told = (
            "it is one checkpoint, which load_checkpoint reads; expected the directory that has it"
        )
        raise NotADirectoryError(errno.ENOTDIR, told, str(folder))
    epochs = {path: epoch_of(path.name) for path in folder.glob("*.*")}
    numbered = [(epoch, path) for path, epoch in epochs.items() if epoch is not None]
    newest = [path for _, path in sorted(numbered, key=lambda pair: -pair[0])]
    paths = [*folder.glob("last.*"), *newest, *folder.glob("best.*")]
    return [path for path in paths if path.suffix in (".pth", ".dcp")]


def consolidate(directory: PathLike, out: PathLike) -> None:
    """Make one file of a sharded checkpoint, in one process that has room for all of it.

    >>> manager = CheckpointManager("runs/large", sharded=True)
    >>> manager.process(0.5, epoch=1, checkpoint=make_checkpoint("train", 1, nn.Linear(2, 1)))
    >>> consolidate(manager.best_path, "best.pth")
    >>> torch.load("best.pth")["epoch"]
    1

    Raises:
        CheckpointError: Damaged, or not a sharded checkpoint.
    """
    save_checkpoint(read_shards(directory), out)


def export_safetensors(path: PathLike, out: PathLike, *, key: str = "model") -> None:
    """Write the weights of a checkpoint for others, as a `.safetensors` file.

    >>> save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1)), "best.pth")
    >>> export_safetensors("best.pth", "best.safetensors")
    >>> sorted(load_checkpoint("best.safetensors")["model_state_dict"])
    ['bias', 'weight']

    Weights that share their memory are written under each of their names. Of a sharded checkpoint
    this process reads the weights alone.

    Args:
        key: The name of other weights: "ema" for the averaged model of `EMA`.

    Raises:
        CheckpointError: Damaged, or it has no such weights.
        ModuleNotFoundError: safetensors is not installed.
    """
    checkpoint = _only(path, key) if is_sharded(path) else read_checkpoint(path)
    weights = named_weights(checkpoint, key)
    if weights is None or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError(
            f"{path} has no weights to export under {key}_state_dict; it has "
            f"{', '.join(map(str, checkpoint)) or 'nothing'}"
        )
    own = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()
    }
    data = _safetensors("export_safetensors").save(own, metadata={"format": "pt"})
    with write_whole(out) as file:
        file.write(data)


def named_weights(checkpoint: Any, name: str) -> Mapping[str, Any] | None:
    """The weights of that name, as this library or another one calls them; None if there are none.

    An average has them inside: `EMA` under "module", torch's `AveragedModel` after "module.".
    """
    names = [f"{name}_state_dict", name, f"state_dict_{name}", f"model_{name}"]
    names += {"model": ["state_dict"], "scheduler": ["lr_scheduler"]}.get(name, [])
    found = [checkpoint.get(each) for each in names] if isinstance(checkpoint, Mapping) else []
    state = next((each for each in found if isinstance(each, Mapping)), None)
    if state is not None and {"module", "shadows", "updates"} == set(state):
        return state["module"]  # type: ignore[no-any-return]
    if state is not None and "n_averaged" in state and name != "model":
        inside = {k: v for k, v in state.items() if k.startswith("module.")}
        return {k.removeprefix("module."): v for k, v in inside.items()}
    return state


def read_alone(path: PathLike) -> Checkpoint:
    """A checkpoint that this process reads, whatever other ranks do."""
    return read_shards(path, alone=True) if is_sharded(path) else read_checkpoint(path)


def _only(path: PathLike, key: str) -> Checkpoint:
    """A sharded checkpoint of which the weights of a name are read; the rest is on `meta`."""
    shards = Shards(path)
    wanted = {id(value) for value in (named_weights(shards.contents, key) or {}).values()}
    pairs: list[tuple[Tensor, Tensor]] = []

    def filled(value: Any, place: str) -> Any:  # noqa: ARG001
        if id(value) not in wanted or not isinstance(value, Tensor):
            return value
        pairs.append((value, torch.empty_like(value, device="cpu")))
        return pairs[-1][1]

    checkpoint = dict(rebuilt(shards.contents, filled))
    shards.read(pairs)
    return checkpoint


def is_sharded(path: PathLike) -> bool:
    """Whether a path is a sharded checkpoint."""
    return Path(path, INDEX).exists()


def _is_safetensors(path: PathLike) -> bool:
    return Path(path).suffix == ".safetensors" and Path(path).is_file()


def _is_index(path: PathLike) -> bool:
    return Path(path).name.endswith(".safetensors.index.json") and Path(path).is_file()


def _all_parts(path: PathLike, read: Callable[[Path], Checkpoint]) -> Checkpoint:
    """The weights of the files that an index of the Hub names, which lie beside it."""
    try:
        index = read_json(path)
        check(index, {"weight_map": Most(dict, 10**7, Most(str, 1000))})
        places = index["weight_map"]
        for file in places.values():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(f"it names the file {brief(file)}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the index of safetensors: {error}") from error
    weights: dict[str, Any] = {}
    for file in sorted(set(places.values())):
        part = Path(path).parent / file
        if not part.is_file():
            raise CheckpointError(f"{path} is incomplete: {part} is missing; download it, too")
        weights |= read(part)["model_state_dict"]
    if missing := [name for name in places if name not in weights]:
        raise CheckpointError(f"{path} names {brief(missing[0])}, which is not in its file")
    return {"model_state_dict": {name: weights[name] for name in places}}


def _safetensors(for_: str) -> ModuleType:
    return import_optional("safetensors.torch", needs="safetensors", for_=f"{for_} of .safetensors")


def _all_of(path: Path) -> bytes:
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(_HEADER, os.fstat(file.fileno()).st_size):  # before the rest takes memory
            raise ValueError(f"its header has {size:,} bytes")
        file.seek(0)
        return file.read()


def _weights(load: Callable[[Path], Any], path: PathLike, device: Any) -> Checkpoint:
    try:
        weights = load(Path(path))
    except OSError:
        raise
    except Exception as error:  # of many kinds, as damage has
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return {name: tensor.to(known_device(device)) for name, tensor in weights.items()}

"""Read a checkpoint in any form: a file, a directory of shards, safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from batteries._device import known_device
from batteries._files import PathLike
from batteries._foreign import brief, open_regular
from batteries._warnings import warn
from batteries.checkpoint._contents import Checkpoint
from batteries.checkpoint._read_file import Stream, Where
from batteries.checkpoint._read_outline import CheckpointError, check_exists, is_state, outline_file
from batteries.checkpoint._read_safetensors import files_in_index
from batteries.checkpoint._read_shards import Shards, peek_shards
from batteries.checkpoint._seal import INDEX


class File(Protocol):
    """An open checkpoint, in any form."""

    contents: Any  # with meta tensors
    sealed: bool  # whether this library has written it

    def read(self, where: Where) -> Any:
        """The contents, with the numbers of the tensors for which `where` gives a place."""

    def verify(self, *, together: bool = False) -> None:
        """Raise if the file is not as it was written. With `together`, all ranks call it."""


@contextmanager
def opened(path: PathLike, *, alone: bool | None = None) -> Iterator[File]:
    """Open a checkpoint in any form.

    Args:
        alone: Whether one rank opens a sharded checkpoint. Default: True without a process group.
    """
    if is_sharded(path):
        yield Shards(path, alone=alone)
    elif _is_index(path):
        with ExitStack() as stack:
            yield _Parts(Path(path), stack)
    else:
        with Stream.opened(path) as stream:
            yield stream


class _Parts:
    """The weights of the files that an index of the Hub names."""

    sealed = False

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._files = files_in_index(path)
        self._parts = {
            file: stack.enter_context(Stream.opened(file))
            for file in sorted(set(self._files.values()))
        }
        for name, file in self._files.items():
            if name not in _weights(self._parts[file].contents):
                raise CheckpointError(
                    f"{path} says that {brief(name)} is in {file.name}, which does not have it; "
                    "download both again"
                )
        self.contents = self._joined({f: part.contents for f, part in self._parts.items()})

    def read(self, where: Where) -> Any:
        return self._joined({file: part.read(where) for file, part in self._parts.items()})

    def verify(self, *, together: bool = False) -> None:
        for part in self._parts.values():
            part.verify(together=together)

    def _joined(self, found: Mapping[Path, Any]) -> Checkpoint:
        state = {name: _weights(found[file])[name] for name, file in self._files.items()}
        return {"model_state_dict": state}


def read_checkpoint(path: PathLike, map_location: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint, and verify all of its bytes.

    >>> save_checkpoint({"model_state_dict": {}, "epoch": 1}, "last.pth")
    >>> read_checkpoint("last.pth")["epoch"]
    1

    The file is read once: the bytes in the tensors are the bytes that were verified. A file of
    `save_checkpoint` is verified by its digest, and a file of `torch.save` by the checksums of
    its zip records. `.safetensors` have no checksums. They become `{"model_state_dict": ...}`, and
    so does the Hub's `model.safetensors.index.json` with the files that it names. The bare state
    dict of a model becomes the same, with a warning.

    The tensors of a sharded checkpoint are whole. If there is a process group, call the function
    on all ranks to read one.

    Args:
        map_location: The device of the tensors. On "meta" they have no numbers, but the whole file
            is verified.

    Returns:
        Everything in the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown `map_location`.
        CheckpointError: Damaged, cut short, or not a checkpoint.
        ModuleNotFoundError: The file needs safetensors, which is not installed.
    """
    return read_whole(path, map_location)


def read_whole(
    path: PathLike, map_location: torch.device | str = "cpu", alone: bool | None = None
) -> Checkpoint:
    """Read and verify a checkpoint; with `alone=True`, also a sharded one in this process only."""
    device = known_device(map_location)
    to = None if device.type == "meta" else device
    with opened(path, alone=alone) as file:
        contents = file.read(lambda *_: to)
        file.verify()
    return checkpoint_of(contents, path, file.sealed)


def checkpoint_of(contents: Any, path: PathLike, sealed: bool = False) -> Checkpoint:
    """What was read, or an error if it is no checkpoint. A model's state dict becomes one."""
    if isinstance(contents, Mapping):
        states = [v for v in contents.values() if isinstance(v, Mapping) and v and is_state(v)]
        if sealed or states or "model_state_dict" in contents:
            return dict(contents)
    if isinstance(contents, Mapping) and contents and is_state(contents):
        warn(
            f"{path} is the bare state dict of a model: it has no epoch, optimizer or metrics",
        )
        return {"model_state_dict": contents}
    found = list(contents) if isinstance(contents, Mapping) else type(contents).__name__
    raise CheckpointError(
        f"{path} is not a checkpoint: expected a dict with 'model_state_dict' or the like, or the "
        f"state dict of a model; found {str(found)[:300]}"
    )


def peek(path: PathLike) -> Checkpoint:
    """Everything in a checkpoint except the numbers in its tensors. Fast for any size.

    >>> save_checkpoint({"model_state_dict": nn.Linear(2, 1).state_dict(), "epoch": 1}, "last.pth")
    >>> peek("last.pth")["model_state_dict"]["weight"].shape
    torch.Size([1, 2])

    Tensors have their shapes and dtypes, and lie on the `meta` device. Nothing is verified: neither
    the bytes, nor that the contents are those of a checkpoint.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or not a file of `save_checkpoint`, `torch.save` or safetensors.
        ModuleNotFoundError: The file needs safetensors, which is not installed.
    """
    path = Path(path)
    if is_sharded(path):
        return peek_shards(path)
    if path.suffix == ".safetensors" or _is_index(path):
        with opened(path) as file:
            return file.contents  # type: ignore[no-any-return]
    check_exists(path)
    with open_regular(path) as stream:
        return outline_file(path, stream).contents  # type: ignore[no-any-return]


def named_weights(checkpoint: Any, name: str) -> Mapping[str, Any] | None:
    """The weights of that name in a file of this or another library; None if it has none.

    `EMA` keeps its weights under "module". In the state of torch's `AveragedModel`, the names of
    the weights begin with "module.".
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


def is_sharded(path: PathLike) -> bool:
    return Path(path, INDEX).exists()


def _is_index(path: PathLike) -> bool:
    ends = (".safetensors.index.json", ".bin.index.json")
    return Path(path).name.endswith(ends) and Path(path).is_file()


def _weights(contents: Any) -> Any:
    """The weights in a file of the Hub: `.safetensors`, or a bare state dict (`.bin`)."""
    return contents.get("model_state_dict", contents)

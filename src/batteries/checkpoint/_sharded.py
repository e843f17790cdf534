"""Checkpoints larger than one process: a directory to which each rank writes its part."""

from __future__ import annotations

import os
import pickle
import platform
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batteries import distributed
from batteries._files import PathLike, naming, point_to, sync, temporary_name
from batteries._foreign import Most, brief, check, open_regular
from batteries._rundir import record as run_record
from batteries.checkpoint._archive import INDEX, Digest, Note
from batteries.checkpoint._contents import Checkpoint, plain_or_refused, rebuilt, why_unreadable
from batteries.checkpoint._storage import CheckpointError, save_checkpoint
from batteries.checkpoint._stream import Stream, Where
from batteries.distributed._waiting import wait_until

# A directory holds the files of torch.distributed.checkpoint and, written last, index.pth: the
# checkpoint with an empty tensor for each tensor, their shapes, the digests of the other files.
_UUID = "[0-9a-f]{32}"
_CLAIM = rf"\..+\.dcp\.{_UUID}\.tmp"
Room = Callable[[str, Tensor], Tensor]  # a place and a meta tensor to the tensor to be filled


def new_folder(shards: Path) -> Path:
    """A name for a directory that nobody has."""
    return shards / uuid.uuid4().hex


def write_shards(checkpoint: Mapping[str, Any], folder: Path) -> Checkpoint:
    """Write the tensors of a checkpoint, each rank its part, and return what the index will say.

    All ranks call it with the same checkpoint. When it returns, all is on the disk.

    Raises:
        TypeError: A value that cannot be saved, with its place; nothing has been written then.
        CheckpointError: A rank could not write, on every rank.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # takes long to import
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors: dict[str, Tensor] = {}

    def taken(value: Any, place: str) -> Any:
        if not isinstance(value, Tensor):
            return plain_or_refused(value, place)
        why = why_unreadable(value)
        if why or value.layout != torch.strided:
            why = why or "it is sparse; store tensor.to_dense()"
            raise TypeError(f"a sharded checkpoint cannot hold {place}: {why}")
        tensors[place] = value.detach()
        return torch.empty(0, dtype=value.dtype)

    def checked() -> Any:
        if not (distributed.is_main() or wait_until(folder.is_dir, run_record.SEEN)):
            raise CheckpointError(
                f"rank {distributed.rank()} on {platform.node()} does not see {folder}, which rank "
                "0 has made: a sharded checkpoint needs a directory that all hosts share"
            )
        return rebuilt(checkpoint, taken)

    plain = distributed.together(checked)
    # The engine would sync .metadata before Python has written it: all is synced below.
    writer = FileSystemWriter(folder, sync_files=False)
    with _engine(f"{folder} cannot be written"):
        save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    own = list(folder.glob(f"__{distributed.rank()}_*"))
    own += [folder / ".metadata"] if distributed.is_main() else []
    digests = distributed.together(lambda: {path.name: _synced_digest(path) for path in own})
    return {
        "checkpoint": plain,
        "shapes": {place: list(tensor.shape) for place, tensor in tensors.items()},
        "files": {
            name: digest
            for part in distributed.all_gather(digests)
            for name, digest in part.items()
        },
    }


def commit_shards(index: Checkpoint, folder: Path, name: Path, note: Note) -> None:
    """Complete a directory with its index, and let a name stand for it in one step."""
    save_checkpoint(index, folder / INDEX, note=note)
    sync(folder.parent)
    sync(folder.parent.parent)
    name_shards(name, os.path.relpath(folder, name.parent))


# Several log directories may keep their shards in one place. A directory is removed only if a
# temporary link of this log directory stands for it: it is made before the directory is written,
# and before a name that stands for it gets another meaning.


def claim_shards(folder: PathLike, name: Path) -> None:
    """Let a temporary link stand for a directory, to be removed unless it gets a name."""
    temporary_name(name).symlink_to(folder)


def name_shards(name: Path, folder: PathLike) -> None:
    """Let a name stand for a directory; the one that it stood for is claimed."""
    if name.is_symlink() and name.readlink() != Path(folder):
        claim_shards(name.readlink(), name)
    point_to(folder, name)


def remove_unnamed(shards: Path) -> None:
    """Remove what is claimed and has no name; hold the log directory meanwhile."""
    links = [path for path in shards.parent.glob("*") if path.is_symlink()]
    claims = [path for path in links if re.fullmatch(_CLAIM, path.name)]
    named = {path.resolve() for path in links if path not in claims}
    for link in claims:
        folder = link.resolve()
        ours = folder.parent == shards.resolve() and re.fullmatch(_UUID, folder.name)
        if ours and folder not in named and folder.is_dir():
            shutil.rmtree(folder)
        link.unlink()


def read_shards(path: PathLike) -> Checkpoint:
    """Read a sharded checkpoint, whole, on any number of ranks, all of which call it.

    Raises:
        CheckpointError: Damaged, incomplete or not ours, on every rank.
    """
    return Shards(path).read(lambda *_: torch.device("cpu"))


class Shards:
    """A sharded checkpoint, verified, whose tensors are read when they are wanted.

    The engine reads a pickle, which could run code: of ours it may only make what describes
    tensors, whose bytes lie in files that the index names. Every file is held against its digest.

    Args:
        alone: This process reads by itself, whatever other ranks do. Default: if there is no
            process group.

    Raises:
        CheckpointError: Damaged, incomplete or not ours.
    """

    sealed = True

    def __init__(self, path: PathLike, *, alone: bool | None = None) -> None:
        folder = Path(path).resolve()  # the name may stand for another meanwhile
        self._alone = not dist.is_initialized() if alone is None else alone
        self._index = _verified(folder, path, self._alone)
        self._path = path
        self._reader = _reader(folder, self._index)
        self._places: dict[int, str] = {}
        self._metas: dict[str, Tensor] = {}
        self.contents = _filled(self._index, self._placed)  # with meta tensors

    def read(self, where: Where) -> Checkpoint:
        """The contents with the numbers of those tensors that go somewhere; the others are meta."""
        rooms: dict[str, Tensor] = {}

        def room(place: str, whole: Tensor) -> Tensor:
            to = where(place, self._metas[place])
            if to is None:
                return self._metas[place]
            if isinstance(to, Tensor):
                home = to.device_mesh.device_type  # type: ignore[attr-defined]
                options = {"dtype": whole.dtype, "device": home, "requires_grad": False}
                rooms[place] = torch.empty_like(to, **options)
            else:
                rooms[place] = torch.empty_like(whole, device=to)
            return rooms[place]

        checkpoint = _filled(self._index, room)
        self.load(rooms)
        return checkpoint

    def verify(self, *, together: bool = False) -> None:
        """Nothing is left to verify."""

    def fill(self, tensors: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fill the second of each pair with what the first, of `contents`, stands for."""
        self.load({self._places[id(meta)]: room for meta, room in tensors})

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors by their places."""
        from torch.distributed.checkpoint.state_dict_loader import load  # takes long to import

        with _engine(f"{self._path} cannot be read"):
            load(tensors, storage_reader=self._reader, no_dist=self._alone)

    def _placed(self, place: str, whole: Tensor) -> Tensor:
        self._places[id(whole)] = place
        self._metas[place] = whole
        return whole


def verify_shards(path: PathLike) -> None:
    """Raise if the files of a sharded checkpoint are not as they were written; all ranks call it.

    Each rank verifies some of the files.

    Raises:
        CheckpointError: Damaged or incomplete, on every rank.
    """
    _verified(Path(path).resolve(), path, alone=False)


def _verified(folder: Path, path: PathLike, alone: bool) -> Checkpoint:
    """The index of a directory, all of whose files are as they were written."""

    def verify() -> Checkpoint:
        index = _read_index(folder, path)
        names = sorted(index["files"])
        for name in names if alone else names[distributed.rank() :: distributed.world_size()]:
            if not (folder / name).is_file():
                raise CheckpointError(f"{path} is incomplete: {name} is missing")
            if _digest(folder / name) != index["files"][name]:
                raise CheckpointError(
                    f"{path} is damaged: its {name} does not have the digest that it was saved "
                    "with; go back to another checkpoint of the run"
                )
        return index

    return verify() if alone else distributed.together(verify)


def peek_shards(path: PathLike) -> Checkpoint:
    """What is in a sharded checkpoint, with meta tensors; its shards are not verified."""
    return _filled(_read_index(Path(path), path), lambda place, whole: whole)  # noqa: ARG005


def _read_index(folder: Path, path: PathLike) -> Checkpoint:
    """The index of a directory: what it names are files in there, and shapes."""
    with Stream.opened(folder / INDEX) as file:
        index: Checkpoint = file.read(lambda *_: torch.device("cpu"))
        file.verify()
    try:
        check(index, dict)
        if not _PARTS.keys() <= set(index):
            raise ValueError(f"it has no {', '.join(_PARTS.keys() - set(index))}")
        check(index, _PARTS)
        for name in index["files"]:
            if Path(name).name != name or not _FILE.fullmatch(name):
                raise ValueError(f"it names the file {brief(name)}")
    except ValueError as error:
        raise CheckpointError(
            f"{path}/{INDEX} is not the index of a sharded checkpoint: {error}"
        ) from None
    return index


_FILE = re.compile(r"__\d+_\d+\.distcp|\.metadata")
_PARTS = {
    "checkpoint": dict,
    "shapes": Most(dict, 10**7, Most(list, 64, int)),
    "files": Most(dict, 10**7, Most(str, 100)),
}


def _filled(index: Checkpoint, room: Room) -> Checkpoint:
    """The checkpoint of an index, with tensors of their shapes."""

    def leaf(value: Any, place: str) -> Any:
        if not isinstance(value, Tensor):
            return value
        try:
            whole = torch.empty(index["shapes"][place], dtype=value.dtype, device="meta")
        except (KeyError, RuntimeError):
            raise CheckpointError(
                f"the index of a sharded checkpoint has no shape of {place}"
            ) from None
        return room(place, whole)

    return dict(rebuilt(index["checkpoint"], leaf))


def _reader(folder: Path, index: Checkpoint) -> Any:
    """The engine's reader of a directory, which makes what describes tensors, and nothing else."""
    from torch.distributed.checkpoint import filesystem, metadata

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module = module.removesuffix("._local")  # of pathlib, since Python 3.13
            is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if is_dtype or (module, name) in _DESCRIBES:
                return super().find_class(module, name)
            raise CheckpointError(f"{folder}/.metadata would call {brief(f'{module}.{name}')}")

    class Reader(filesystem.FileSystemReader):
        found: Any = None

        def read_metadata(self, *_: Any, **__: Any) -> Any:
            self.found = found = self.found or self.described()
            found.storage_meta = found.storage_meta or metadata.StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

        def described(self) -> Any:
            with open_regular(folder / ".metadata", inside=folder) as file:
                found = Unpickler(file).load()
            # Of bytes the engine would make any object; files elsewhere are nobody's shards.
            kinds = {type(each) for each in found.state_dict_metadata.values()}
            names = {each.relative_path for each in found.storage_data.values()}
            if kinds - {metadata.TensorStorageMetadata} or not names <= set(index["files"]):
                raise CheckpointError(f"{folder}/.metadata describes more than tensors in there")
            return found

    return Reader(folder)


_DESCRIBES = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
            *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("collections", "OrderedDict"),
}


def _synced_digest(path: Path) -> str:
    sync(path)
    return _digest(path)


def _digest(path: Path) -> str:
    digest = Digest()
    with naming(path), open_regular(path, inside=path.parent) as file:
        while block := file.read(8 * Digest.block):
            digest.update(block)
    return digest.hex().decode()


@contextmanager
def _engine(failed: str) -> Iterator[None]:
    """Tell the errors of torch.distributed.checkpoint, which are no Exceptions, as ours."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # of torch 2.10
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"{failed}: {cause}, on rank {rank}") from cause

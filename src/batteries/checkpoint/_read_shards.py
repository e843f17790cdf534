"""Read a sharded checkpoint: a directory to which each rank has written its part."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batteries import distributed
from batteries._files import PathLike, naming
from batteries._foreign import Most, brief, check, open_regular
from batteries.checkpoint._contents import Checkpoint, rebuilt
from batteries.checkpoint._read_file import Stream, Where
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import INDEX, Digest


class Shards:
    """A verified sharded checkpoint. Its tensors are read on demand.

    The reader of torch.distributed.checkpoint loads a pickle, which could run code. Here it may
    make only the classes that describe tensors, and read only files that the index names. Every
    file is compared with its digest.

    Args:
        alone: Whether this process reads alone. Default: True without a process group.
    """

    sealed = True

    def __init__(self, path: PathLike, *, alone: bool | None = None) -> None:
        folder = Path(path).resolve()  # the name may get another target meanwhile
        self._alone = not dist.is_initialized() if alone is None else alone
        index = _verified(folder, path, self._alone)
        self._path = path
        self._reader = _reader(folder, index)
        self.contents = _outline(index)
        self._places: dict[int, str] = {}  # by the ids of the tensors

        def note(leaf: Any, place: str) -> Any:
            self._places.setdefault(id(leaf), place)
            return leaf

        rebuilt(self.contents, note)

    def read(self, where: Where) -> Checkpoint:
        rooms: dict[str, Tensor] = {}

        def room(meta: Any, place: str) -> Any:
            to = where(place, meta) if isinstance(meta, Tensor) else None
            if to is None:
                return meta
            if isinstance(to, Tensor):
                home = to.device_mesh.device_type  # type: ignore[attr-defined]
                options = {"dtype": meta.dtype, "device": home, "requires_grad": False}
                rooms[place] = torch.empty_like(to, **options)
            else:
                rooms[place] = torch.empty_like(meta, device=to)
            return rooms[place]

        checkpoint: Checkpoint = rebuilt(self.contents, room)
        self._load(rooms)
        return checkpoint

    def verify(self, *, together: bool = False) -> None:
        """Do nothing: all files were verified when they were opened."""

    def fill(self, meta: Tensor, room: Tensor) -> None:
        """Read the numbers of one tensor."""
        self._load({self._places[id(meta)]: room})

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors by their places."""
        from torch.distributed.checkpoint.state_dict_loader import load  # takes long to import

        with engine(f"{self._path} cannot be read"):
            load(tensors, storage_reader=self._reader, no_dist=self._alone)


def _verified(folder: Path, path: PathLike, alone: bool) -> Checkpoint:
    """The index of a directory, after all files are compared with their digests."""

    def verify() -> Checkpoint:
        index = _read_index(folder, path)
        names = sorted(index["files"])
        for name in names if alone else names[distributed.rank() :: distributed.world_size()]:
            if not (folder / name).is_file():
                raise CheckpointError(f"{path} is incomplete: {name} is missing")
            if digest_of(folder / name) != index["files"][name]:
                raise CheckpointError(
                    f"{path} is damaged: its {name} does not have the digest that it was saved "
                    "with; use another checkpoint of the run"
                )
        return index

    return verify() if alone else distributed.together(verify)


def peek_shards(path: PathLike) -> Checkpoint:
    """A sharded checkpoint with meta tensors. The shards are not verified."""
    return _outline(_read_index(Path(path), path))


def _read_index(folder: Path, path: PathLike) -> Checkpoint:
    """The index of a directory. It may name only files of shards in that directory."""
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


def _outline(index: Checkpoint) -> Checkpoint:
    """The checkpoint of an index, with meta tensors."""

    def leaf(value: Any, place: str) -> Any:
        if not isinstance(value, Tensor):
            return value
        try:
            return torch.empty(index["shapes"][place], dtype=value.dtype, device="meta")
        except (KeyError, RuntimeError):
            raise CheckpointError(
                f"the index of a sharded checkpoint has no shape for {place}"
            ) from None

    return dict(rebuilt(index["checkpoint"], leaf))


def _reader(folder: Path, index: Checkpoint) -> Any:
    """A reader for torch.distributed.checkpoint. It makes only objects that describe tensors."""
    from torch.distributed.checkpoint import filesystem, metadata

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module = module.removesuffix("._local")  # of pathlib, since Python 3.13
            is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if is_dtype or (module, name) in _DESCRIBES:
                return super().find_class(module, name)
            raise CheckpointError(
                f"{folder}/.metadata would call {brief(f'{module}.{name}')}: it is damaged, or may "
                "run code of an attacker; use another checkpoint"
            )

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
            # The engine would unpickle any object from bytes. Only named files may be read.
            kinds = {type(each) for each in found.state_dict_metadata.values()}
            names = {each.relative_path for each in found.storage_data.values()}
            if kinds - {metadata.TensorStorageMetadata} or not names <= set(index["files"]):
                raise CheckpointError(
                    f"{folder}/.metadata describes more than the tensors in this directory: use "
                    "another checkpoint"
                )
            return found

    return Reader(folder)


_METADATA = (
    "ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties "
    "TensorStorageMetadata _MEM_FORMAT_ENCODING"
)
_DESCRIBES = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _METADATA.split()),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
}


def digest_of(path: Path) -> str:
    digest = Digest()
    with naming(path), open_regular(path, inside=path.parent) as file:
        while block := file.read(8 * Digest.block):
            digest.update(block)
    return digest.hex().decode()


@contextmanager
def engine(failed: str) -> Iterator[None]:
    """Raise a CheckpointError for torch's CheckpointException, which is no Exception."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # of torch 2.10
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"{failed}: {cause}, on rank {rank}") from cause

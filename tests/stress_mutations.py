"""Read damaged and invented files: refused as documented, in bounded time and memory, not run."""

from __future__ import annotations

import io
import random
import re
import resource
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from test_checkpoint_storage import seal_file
from torch import nn

from batteries import CheckpointError, load_checkpoint, make_checkpoint, save_checkpoint
from batteries.checkpoint import peek, read_checkpoint

LONGEST = 20  # seconds for one file, on a busy machine; the system ends a program that takes more
MEMORY = 64 * 2**20  # bytes that reading all of them may add
WARM = 200  # files, after which all is imported
HARMFUL = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir"),
    *("os.rmdir", "os.putenv", "os.kill", "subprocess", "socket", "shutil", "ctypes"),
)
NAMES = [b"os\nsystem", b"builtins\neval", b"builtins\nbytearray", b"shutil\nrmtree", b"io\nopen"]

happened: list[str] = []
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what code in a file could do."""
    writes = event == "open" and arguments[1] not in ("r", "rb", None)
    if watching and (writes or event.startswith(HARMFUL)):
        happened.append(f"{event} {arguments}")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes with a few changes of one kind."""
    new = bytearray(data)
    kind = chance.choices(["byte", "bit", "cut", "double", "move", "name"], [6, 1, 1, 1, 1, 1])[0]
    for _ in range(chance.randint(1, 4)):
        place, other = chance.randrange(len(new)), chance.randrange(len(new))
        end = place + chance.randint(1, 40)
        if kind == "byte":
            new[place] = chance.randrange(256)
        elif kind == "bit":
            new[place] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del new[place:end]
        elif kind == "double":
            new[place:place] = new[place:end]
        elif kind == "move":
            new[place:end] = new[other : other + end - place]
        else:  # call something else
            names = [found.span(1) for found in re.finditer(rb"c([\w.]+\n\w+)\n", new)]
            new[slice(*chance.choice(names))] = chance.choice(NAMES)
    return bytes(new)


def with_pickle(records: dict[str, bytes], pickled: bytes) -> bytes:
    """A zip file in which all is right but the pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else data)
    return file.getvalue()


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    global watching
    signal.alarm(LONGEST)
    watching = True
    try:
        read(path)
    except CheckpointError:
        return "refused"
    finally:
        watching = False
        signal.alarm(0)
    return "loaded"


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def mutations(number: int, chance: random.Random) -> str:
    """Read changed files: without a digest, with a wrong one, and with one that is right again."""
    warnings.simplefilter("ignore")  # of torch, about what it refuses then
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(make_checkpoint("train", 3, model, optimizer, metrics={"loss": 0.5}), "a.pth")
    sealed = Path("a.pth").read_bytes()
    plain = sealed[: sealed.rfind(b"PK\5\6") + 20] + b"\0\0"
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(data for name, data in records.items() if name.endswith("/data.pkl"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reads: list[Callable[[Path], Any]] = [
        read_checkpoint,
        peek,
        partial(load_checkpoint, model=model),
    ]
    counts, longest, used = {"loaded": 0, "refused": 0}, 0.0, 0
    sys.addaudithook(watch)
    for n in range(-WARM, number):
        if n == 0:
            happened.clear()
            counts, longest, used = dict.fromkeys(counts, 0), 0.0, memory()
        path = Path("mutated.pth")
        path.unlink(missing_ok=True)
        with path.open("x+b") as file:
            if n % 4 < 2:  # what disks and networks do
                file.write(mutated([sealed, plain][n % 4], chance))
            else:
                file.write(with_pickle(records, mutated(pickled, chance)))
        if n % 2:
            seal_file(path)
        begun = time.monotonic()
        result = outcome(reads[n % len(reads)], path)
        longest = max(longest, time.monotonic() - begun)
        counts[result] += 1
        unchanged = all(value.equal(before[name]) for name, value in model.state_dict().items())
        assert unchanged or result == "loaded", "a refused file changed the model"
        if not unchanged:
            model.load_state_dict(before)
    grown = max(0, memory() - used)
    assert grown < MEMORY, f"{grown:,} bytes"
    assert not happened, happened[0]
    return (
        f"{counts['loaded']:,} loaded, {counts['refused']:,} refused, none in another way; "
        f"{longest:.2f} s for the slowest, {grown / 2**20:.0f} MiB more memory, no code run"
    )

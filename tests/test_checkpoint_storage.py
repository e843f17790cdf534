from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from sweeps import sweep
from torch import nn

from batteries import CheckpointError, load_checkpoint, make_checkpoint, save_checkpoint
from batteries.checkpoint import latest, peek, read_checkpoint
from batteries.checkpoint._seal import Digest, comment_of, read_note


def small(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def trained() -> dict[str, Any]:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    return make_checkpoint("train", 3, model, optimizer, metrics={"loss": 0.5})


def save(path: str = "last.pth") -> bytes:
    torch.manual_seed(0)
    save_checkpoint(trained(), path, note={"row": {"epoch": 3}})
    return Path(path).read_bytes()


def assert_refused(data: bytes | bytearray) -> None:
    Path("damaged.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"^damaged\.pth"):
        read_checkpoint("damaged.pth")


# ---------------------------------------------------------------- cannot lie


@pytest.mark.parametrize("count", [200, sweep(2000)])
def test_every_bit_counts(count: int) -> None:
    """Each of many flipped bits, in tensors and in structure, is noticed."""
    data = save()
    bits = random.Random(0).sample(range(len(data) * 8), count)
    for bit in bits:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert_refused(damaged)


@pytest.mark.parametrize("apart", [7, sweep(1)])
def test_every_bit_of_the_end_counts(apart: int) -> None:
    """A flipped bit anywhere in the directory, the note or the digest itself is noticed."""
    data = save()
    for bit in range(8 * (len(data) - 300), 8 * len(data), apart):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert_refused(damaged)


def test_every_truncation_is_noticed() -> None:
    """A file that was cut short, at any of 200 lengths or in the seal, is refused."""
    data = save()
    lengths = random.Random(0).sample(range(len(data)), 200)
    for length in [*lengths, *range(len(data) - 100, len(data))]:
        assert_refused(data[:length])


def test_appended_bytes_are_noticed() -> None:
    """Bytes after the end are damage too."""
    assert_refused(save() + b"\0")


def seal_file(path: Path) -> None:
    """Give a file without a seal a right one, whatever is in it."""
    digest, data = Digest(), path.read_bytes()[:-2] + comment_of({})
    digest.update(data)
    path.write_bytes(data + digest.hex())


def test_places_count() -> None:
    """The digest of several blocks notices words that change places, in one block and across."""
    words = torch.arange(2**19).numpy()  # 4 MiB

    def digest() -> bytes:
        value = Digest()
        value.update(words.data)
        return value.hex()

    seen = {digest()}
    for first, second in [(0, 1), (0, 512), (5, 2**18), (2**17 - 1, 2**17)]:
        words[[first, second]] = words[[second, first]]
        seen.add(digest())
        words[[first, second]] = words[[second, first]]
    assert len(seen) == 5
    assert digest() in seen


def test_files_without_a_digest() -> None:
    """A file of plain `torch.save` is held against the checksums of its records."""
    checkpoint = trained()
    torch.save(checkpoint, "plain.pth")
    assert read_checkpoint("plain.pth")["epoch"] == 3
    data = bytearray(Path("plain.pth").read_bytes())
    weight = checkpoint["model_state_dict"]["0.weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    Path("plain.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checksum of its record plain/data/0 is wrong"):
        read_checkpoint("plain.pth")


def test_a_note_is_not_mistaken() -> None:
    """A file of plain `torch.save` that has our words in it is not taken for a sealed one."""
    torch.save({"model_state_dict": {}, "text": "batteries little {} digest:" + "0" * 32}, "a.pth")
    assert read_note("a.pth") is None
    assert read_checkpoint("a.pth")["text"].startswith("batteries")


def test_other_readers() -> None:
    """torch with and without mmap, and zip tools, read a sealed file as any other."""
    save()
    for mmap in (False, True):
        assert torch.load("last.pth", mmap=mmap)["epoch"] == 3
    assert zipfile.ZipFile("last.pth").testzip() is None


def test_the_file_of_torch() -> None:
    """All bytes but the seal are those of torch.save, for tensors of any size."""
    for size in (0, 1, 300, 2**20, 2**20 + 3):
        checkpoint = {
            "model_state_dict": {"w": torch.randn(size), "n": torch.tensor(3)},
            "epoch": 3,
        }
        torch.save(checkpoint, expected := io.BytesIO())
        save_checkpoint(checkpoint, "last.pth")
        whole = expected.getvalue()[:-2]  # the length of a comment follows
        assert Path("last.pth").read_bytes()[: len(whole)] == whole


def test_what_is_read_is_what_was_written() -> None:
    """Tensors of every kind come back bit for bit, sharing memory where they shared it."""
    base = torch.randn(4, 6)
    values: dict[str, Any] = {
        "strided": base.t()[1:],
        "again": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(),
        "learned": nn.Parameter(torch.ones(2)),
        "nested": OrderedDict(a=[(base,)]),
    }
    for left_out in [(), ("complex", "sparse")]:
        kept = {name: value for name, value in values.items() if name not in left_out}
        save_checkpoint({"model_state_dict": {}, **kept}, "a.pth")
        read = read_checkpoint("a.pth")
        for name in kept.keys() - {"nested"}:
            assert type(read[name]) is type(kept[name])
            torch.testing.assert_close(read[name], kept[name], rtol=0, atol=0, check_stride=True)
        read["again"][0, 1] = 7
        assert read["strided"][0, 0] == read["nested"]["a"][0][0][0, 1] == 7


def test_expanded_tensors() -> None:
    """A tensor that is larger than its memory is written in full, and can be read again."""
    save_checkpoint({"model_state_dict": {}, "x": torch.tensor([1.0, 2]).expand(5000, 2)}, "a.pth")
    assert read_checkpoint("a.pth")["x"].equal(torch.tensor([1.0, 2]).expand(5000, 2))


def test_tensors_may_be_changed() -> None:
    """What was read may be changed in place, and the file stays as it was."""
    data = save()
    read_checkpoint("last.pth")["model_state_dict"]["0.weight"].zero_()
    assert Path("last.pth").read_bytes() == data


def test_peek() -> None:
    """A look has everything but the numbers, and reads no tensor."""
    save()
    seen = peek("last.pth")
    assert (seen["stage"], seen["epoch"], seen["metrics"]) == ("train", 3, {"loss": 0.5})
    assert seen["model_state_dict"]["0.weight"].is_meta
    assert seen["model_state_dict"]["0.weight"].shape == (16, 8)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint best\.pth; \. has last\.pth"):
        peek("best.pth")


def test_notes() -> None:
    """The note of a file is found without reading the file; others have none."""
    save()
    assert read_note("last.pth") == {"row": {"epoch": 3}}
    torch.save({}, "plain.pth")
    assert read_note("plain.pth") is None


@pytest.mark.parametrize("note", [[1], "a", {"a": json.loads("[" * 64 + "]" * 64)}])
def test_notes_that_could_not_be_read(note: Any) -> None:
    """A note that would be read back as an empty one is refused when it is saved."""
    with pytest.raises((TypeError, ValueError), match="the note of a checkpoint"):
        save_checkpoint({"epoch": 1}, "a.pth", note=note)
    assert not Path("a.pth").exists()


def damage(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def test_latest() -> None:
    """The newest good checkpoint is found, with a warning for each damaged one before it."""
    assert latest(".") is None
    for name in ("last.pth", "exp_9.pth", "exp_10.pth", "best.pth", "exp_notes.pth"):
        save(name)
    assert latest(".") == Path("last.pth")
    for damaged, then in [("last.pth", "exp_10.pth"), ("exp_10.pth", "exp_9.pth")]:
        damage(damaged)
        with pytest.warns(UserWarning, match=r"is damaged: .*; an older one is taken") as told:
            assert latest(".") == Path(then)
        assert str(told[-1].message).startswith(damaged)


# ---------------------------------------------------------------- what is written can be read


class Colour(Enum):
    RED = "red"


@dataclass
class Options:
    path: Path
    colours: list[Colour]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, "red"),
        (datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (defaultdict(list, a=[Path("b")]), {"a": ["b"]}),
        (Options(Path("a"), [Colour.RED]), {"path": "a", "colours": ["red"]}),
        ({(1, Path("a")): 1}, {(1, "a"): 1}),
    ],
)
def test_plain_forms(value: object, plain: object) -> None:
    """Enums, times, defaultdicts and dataclasses have plain forms."""
    save_checkpoint(make_checkpoint("train", 1, small(), value=value), "a.pth")
    assert torch.load("a.pth")["value"] == plain


def test_what_contains_itself() -> None:
    """A container that contains itself is refused with its place."""
    loop: list[Any] = [1]
    loop.append({"again": loop})
    with pytest.raises(TypeError, match=r"args\[1\]\.again contains itself"):
        save_checkpoint({"args": loop}, "a.pth")
    assert not Path("a.pth").exists()


def test_keys_that_become_one() -> None:
    """Two keys that are the same as plain values are refused: one value would be lost."""
    with pytest.raises(TypeError, match="paths has two keys that become the same key"):
        save_checkpoint({"paths": {Path("a"): 1, "a": 2}}, "a.pth")


# ---------------------------------------------------------------- loading what fits


def test_strict_false() -> None:
    """`strict=False` loads what fits and reports the rest."""
    save_checkpoint(make_checkpoint("train", 1, small()), "a.pth")
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 5), nn.PReLU())
    checkpoint = load_checkpoint("a.pth", model, strict=False)
    report = checkpoint.report
    assert report.mismatched == ["model.2.weight", "model.2.bias"]
    assert report.missing == ["model.3.weight"]
    assert report.unexpected == []
    assert "model.0.weight" in report.loaded
    saved = checkpoint["model_state_dict"]
    assert model.state_dict()["0.weight"].equal(saved["0.weight"])
    torch.save(checkpoint, "again.pth")
    assert torch.load("again.pth")["epoch"] == 1


def test_prefix() -> None:
    """`prefix=` loads a part of the file's model."""
    whole = nn.ModuleDict({"encoder": small(), "head": nn.Linear(2, 2)})
    save_checkpoint(make_checkpoint("train", 1, whole), "a.pth")
    encoder = small()
    load_checkpoint("a.pth", encoder, prefix="encoder.")
    expected = whole["encoder"].state_dict()
    torch.testing.assert_close(dict(encoder.state_dict()), dict(expected), rtol=0, atol=0)


def test_integers_for_floats() -> None:
    """A tensor of another kind of number does not fit, with both kinds in the error."""
    torch.save({"model_state_dict": {"weight": torch.zeros(1, 1, dtype=torch.int64)}}, "a.pth")
    model = nn.Linear(1, 1, bias=False)
    with pytest.raises(CheckpointError, match=r"is torch\.int64 in a\.pth but torch\.float32 in"):
        load_checkpoint("a.pth", model)


class Stubborn:
    """Refuses its state."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state_dict: object) -> None:
        if state_dict:
            raise ValueError("not mine")


def test_all_or_nothing() -> None:
    """When the last object refuses its state, those before it are as they were."""
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    save_checkpoint(
        {**make_checkpoint("train", 1, model, optimizer), "odd_state_dict": {"a": 1}}, "a"
    )
    other = torch.optim.AdamW(model.parameters(), lr=0.5)
    with pytest.raises(CheckpointError, match="odd_state_dict in a does not fit: not mine"):
        load_checkpoint("a", model, other, odd=Stubborn())
    assert other.param_groups[0]["lr"] == 0.5
    assert not other.state


# ---------------------------------------------------------------- errors of the disk


def save_with_little_space(limit: int) -> tuple[str, int | None, list[str]]:
    before = Path("last.pth").read_bytes()
    checkpoint = trained()  # imports modules that look for a directory they can write to
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_checkpoint(checkpoint, "last.pth")
    except OSError as error:
        assert Path("last.pth").read_bytes() == before
        return str(error), error.errno, sorted(path.name for path in Path().iterdir())
    raise AssertionError("the limit was not met")


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
@pytest.mark.parametrize("tenth", range(10))
def test_no_space(tenth: int) -> None:
    """When the space ends at any tenth of a file, one error says so and nothing has changed."""
    size = len(save())
    limit = size * tenth // 10
    [(text, number, files)] = run_ranks(save_with_little_space, limit, world_size=1, group=False)
    assert number == errno.EFBIG
    assert "last.pth" in text
    assert "bytes are free" in text
    assert files == ["last.pth"]


def test_a_directory_in_the_way() -> None:
    """A directory with the file's name is an error, and nothing is left over."""
    Path("last.pth").mkdir()
    with pytest.raises(OSError, match=r"last\.pth"):
        save_checkpoint(trained(), "last.pth")
    assert [path.name for path in Path().iterdir()] == ["last.pth"]


# ---------------------------------------------------------------- what must not be believed


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("trap").touch, ()


@pytest.mark.parametrize("seal", [True, False])
def test_nothing_in_a_file_runs(seal: bool) -> None:
    """Code in a file is not run, and the error says what it would have been."""
    torch.save({"model_state_dict": {}, "trap": Trap()}, "a.pth")
    if seal:
        seal_file(Path("a.pth"))
    with pytest.raises(
        CheckpointError, match=r"a\.pth cannot be read as a checkpoint: it would call pathlib"
    ):
        read_checkpoint("a.pth")
    assert not Path("trap").exists()


HUGE = 2**33


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def a_tensor(storage_size: int, size: int, stride: int) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += number(storage_size) + b"tQ"
    form = number(0) + number(size) + b"\x85" + number(stride) + b"\x85" + b"\x89"
    return call(
        "torch._utils", "_rebuild_tensor_v2", storage, form, call("collections", "OrderedDict")
    )


BOMBS = {
    "bytes": call("builtins", "bytearray", number(HUGE)),
    "storage": call("torch", "FloatStorage", number(HUGE)),
    "tensor": call("torch", "Tensor", number(HUGE)),
    "beyond its storage": a_tensor(4, HUGE, 1),
    "beyond its record": a_tensor(HUGE, HUGE, 1),
    "expanded": a_tensor(4, HUGE, 0),
    "negative": a_tensor(4, -5, 1),
    "without memory": call(
        "torch._utils", "_rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n", number(HUGE)
    ),
    "deep": b"]" * 100_000 + b"a" * 99_999,
    "cyclic": b"]q\x00h\x00a",
    "number": b"\x8b" + struct.pack("<i", 2**30),
    "eval": call("builtins", "eval", text("open('trap', 'w')")),
    "nothing on the stack": b"R",
}


def read_bombs(directory: str) -> dict[str, tuple[str, int]]:
    os.chdir(directory)
    results = {}
    for name, body in BOMBS.items():
        pickled = b"\x80\x02}" + text("model_state_dict") + b"}" + text("w") + body + b"ss."
        with zipfile.ZipFile("bomb.pth", "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/version", "3\n")
            archive.writestr("a/data/0", b"\0" * 16)
        for seal in (False, True):
            if seal:
                seal_file(Path("bomb.pth"))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for read in (read_checkpoint, peek):
                try:
                    read("bomb.pth")
                except CheckpointError as error:
                    reason = str(error)
                else:
                    reason = "loaded"
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                results[f"{name}, {seal}, {read.__name__}"] = reason, grown // 1024
    return results


def test_bombs(tmp_path: Path) -> None:
    """Small files that would take gigabytes, or run code, are refused and take nothing."""
    [results] = run_ranks(read_bombs, str(tmp_path), world_size=1, group=False)
    assert len(results) == 4 * len(BOMBS)
    for name, (reason, megabytes) in results.items():
        assert reason.startswith("bomb.pth cannot be read as a checkpoint"), name
        assert megabytes < 64, name
    assert not (tmp_path / "trap").exists()


def test_compressed_records() -> None:
    """Records that are compressed are refused before they are unpacked."""
    with zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model_state_dict": {}}, 2))
        archive.writestr("a/data/0", b"\0" * 10_000_000)
    with pytest.raises(CheckpointError, match="its records are compressed"):
        read_checkpoint("bomb.pth")


def test_mutated_files() -> None:
    """500 files with changed bytes and a right digest load, or are refused as documented."""
    data = save()
    body = data[: data.rfind(b"PK\5\6") + 20] + b"\0\0"
    chance, refused = random.Random(0), 0
    pickled = range(body.index(b"\x80\x02"), body.index(b"PK\7\10"))
    for _ in range(500):
        mutated = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            place = chance.choice(pickled) if chance.random() < 0.7 else chance.randrange(len(body))
            mutated[place] = chance.randrange(256)
        Path("mutated.pth").write_bytes(mutated)
        seal_file(Path("mutated.pth"))
        try:
            read_checkpoint("mutated.pth")
        except CheckpointError:
            refused += 1
    assert refused > 125


@pytest.mark.parametrize("read", [peek, read_checkpoint])
def test_damage_that_torch_cannot_tell_of(read: Callable[[str], object]) -> None:
    """A file about which torch raises an error that is no text is refused as any other."""
    torch.save({"model_state_dict": {}}, "a.pth")
    data = Path("a.pth").read_bytes()
    assert data.count(b"Z3\n") == 1  # the record with the version
    Path("a.pth").write_bytes(data.replace(b"Z3\n", b"Z\xf4\n"))
    with pytest.raises(CheckpointError, match=r"^a\.pth cannot be read as a checkpoint"):
        read("a.pth")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_unknown_map_location(device: str) -> None:
    """An unknown device is not called a damaged file."""
    save()
    with pytest.raises(ValueError, match=f"device '{device}'"):
        read_checkpoint("last.pth", map_location=device)


def test_map_location() -> None:
    """The returned tensors lie where they were asked to."""
    save()
    read = read_checkpoint("last.pth", map_location="meta")
    assert read["model_state_dict"]["0.weight"].is_meta


@pytest.mark.parametrize("value", [b"", np.ma.array([1, 2], mask=[False, True])])
def test_values_with_unreadable_forms(value: object) -> None:
    """Values whose form in the file torch does not read are refused with their place."""
    with pytest.raises(TypeError, match=r"a checkpoint cannot hold args\.value"):
        save_checkpoint({"args": {"value": value}}, "a.pth")


def test_tensors_with_attributes() -> None:
    """A tensor that carries python attributes is refused."""
    tensor = torch.zeros(1)
    tensor.tag = object()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"cannot hold args\.tensor, a torch\.Tensor"):
        save_checkpoint({"args": {"tensor": tensor}}, "a.pth")


def test_state_that_is_none() -> None:
    """A model's state that is no state dict is named."""
    save_checkpoint({"model_state_dict": None}, "a.pth")
    with pytest.raises(CheckpointError, match=r"model_state_dict in a\.pth is a NoneType"):
        load_checkpoint("a.pth", small())


class Versioned(nn.Module):
    """Sees which version of itself a state dict is from."""

    _version = 7
    seen: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        Versioned.seen = metadata.get("version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_reach_the_modules() -> None:
    """A module is told the version of its state, when the names had to be changed too."""
    inside: Any = torch.compile(Versioned(), backend="eager")
    save_checkpoint(make_checkpoint("train", 1, nn.Sequential(Versioned())), "a.pth")
    load_checkpoint("a.pth", nn.Sequential(inside))
    assert Versioned.seen == 7


def test_older_forms_of_modules() -> None:
    """States that torch itself brings up to date load: batch norm without its counter."""
    state = nn.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata.clear()  # type: ignore[attr-defined]
    torch.save({"model_state_dict": state}, "a.pth")
    load_checkpoint("a.pth", nn.BatchNorm1d(3))


def test_lazy_modules() -> None:
    """A lazy module takes its shapes from the file."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(3, 2)), "a.pth")
    lazy = nn.LazyLinear(2)
    load_checkpoint("a.pth", lazy)
    assert lazy.weight.shape == (2, 3)


def test_scaler_that_was_off() -> None:
    """A GradScaler's empty state is refused with the file's name, and nothing else changes."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    save_checkpoint(make_checkpoint("train", 1, model, optimizer, scaler=scaler), "a.pth")
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(CheckpointError, match=r"scaler_state_dict in a\.pth does not fit"):
        load_checkpoint("a.pth", model, optimizer, scaler=torch.amp.GradScaler("cpu"))
    assert optimizer.param_groups[0]["lr"] == 0.5

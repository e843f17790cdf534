"""Files that an enemy may put into a run directory, or hand over as a checkpoint."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batteries.checkpoint._write import write_archive

SECRET = "the secret of somebody else"
SPARSE = 2**40  # bytes, of which the disk has none
RECORD = {"id": "a", "sessions": [{"state": "finished", "args": {"lr": 0.1}}]}
HISTORY = {
    "metric_name": "loss",
    "metric_minimization": True,
    "values": [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}],
}
LINE = {"step": 1, "time": 0.0, "metrics": {"loss": 0.5}}
GOOD: dict[str, Any] = {
    "run.json": RECORD,
    "scores.json": {"test": 0.4, "leaderboard": {"public": 0.3}, "folds": [0.4, 0.6]},
    "metrics.json": HISTORY,
    "metrics.jsonl": LINE,
    "log.txt": "epoch 1",
    "diff-1.patch": "--- a",
}

# ---------------------------------------------------------------- what stands where a file should


def _zeros(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # a private /dev/zero


def _sparse(path: Path) -> None:
    with path.open("xb") as file:
        file.truncate(SPARSE)


THINGS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": _zeros,
    "link-to-a-device": lambda path: path.symlink_to("../../outside/zeros"),
    "link-to-a-pipe": lambda path: path.symlink_to("../../outside/pipe"),
    "link-to-a-secret": lambda path: path.symlink_to("../../outside/secret"),
    "link-by-a-link": lambda path: path.symlink_to("elsewhere/secret"),
    "link-in-a-circle": lambda path: path.symlink_to(path.name),
    "link-to-nowhere": lambda path: path.symlink_to("nowhere"),
    "link-to-what-may-be-made": lambda path: path.symlink_to("../../outside/new"),
    "directory": Path.mkdir,
    "sparse": _sparse,
    "zeros": lambda path: path.write_bytes(bytes(2**20)),
    "nothing": Path.touch,
}


def outside(root: Path) -> Path:
    """What belongs to somebody else, beside a log directory."""
    folder = root / "outside"
    folder.mkdir()
    _zeros(folder / "zeros")
    os.mkfifo(folder / "pipe")
    for name in ("secret", "victim.pth", "exp_1.pth", "last.pth", "0_0.distcp"):
        (folder / name).write_text(json.dumps({**RECORD, **HISTORY, "is": SECRET}))
    return folder


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def snapshot(folder: Path) -> dict[str, Any]:
    """All that can be seen of a directory and what is in it, at any depth."""
    return {
        str(path): (
            path.lstat()[:7],
            path.lstat().st_mtime_ns,
            path.is_file() and path.read_bytes(),
        )
        for path in (folder, *sorted(folder.rglob("*")))
    }


# ---------------------------------------------------------------- texts

_TRAVERSALS = ["1/../../../outside/victim", "/etc/passwd", "..", "\0", "1\n2", "٣", "", "1e5"]
_WRONG: list[Any] = [None, True, -1, 1.5, 10**400, "x", [[]], {"": None}, *_TRAVERSALS[:2]]
_RAW: dict[str, bytes] = {
    "deep": b'{"sessions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deeper-than-code": b'{"sessions": [{"args": ' + b'{"a": ' * 300 + b"1" + b"}" * 302,
    "half": b'{"sessions": [',
    "bytes": bytes(range(256)),
    "utf-16": '{"sessions": []}'.encode("utf-16"),
    "digits": b'{"sessions": [{"pid": ' + b"9" * 10_000 + b"}]}",
    "no-finite": b'{"test": NaN, "metric_name": Infinity, "sessions": [{"pid": -Infinity}]}',
    "surrogates": b'{"sessions": [{"state": "\\udc80", "error": "\\u0000"}], "test": "\\ud800"}',
}


MANY_VALUES = b"[" + b"{}," * 5_000_000 + b"{}]"


def _many(number: int) -> dict[str, float]:
    return {f"name {index}": 0.5 for index in range(number)}


_SESSIONS: list[Any] = [
    *({"git": {"diff": name, "commit": "0" * 40}} for name in _TRAVERSALS),
    {"git": {"diff": "../../outside/secret", "commit": "--output=outside"}},
    {"packages": None, "args": None, "git": None, "variables": None},
    {"args": _many(50_000), "packages": _many(50_000)},
    {"args": {"<script>": "</script><script>alert(1)//", "__proto__": {"a": 1}}},
    {"state": "\x1b]0;owned\x07\x1b[2J", "started": "a" * 10**6, "host": "\x1b[31m"},
    {"state": "running", "pid": 10**30}, {"state": "running", "pid": -1},
    {"state": "running", "host": ["a"], "born": {}},
    {"started": "9999-12-31T23:59:59", "stopped": "0001-01-01T00:00:00+23:59", "state": "a"},
]  # fmt: skip
_TEXTS: dict[str, list[Any]] = {
    "run.json": [
        *({**RECORD, "sessions": wrong} for wrong in _WRONG),
        *({**RECORD, "sessions": [session]} for session in _SESSIONS),
        *({**RECORD, "sessions": [{"git": wrong, "pid": wrong}]} for wrong in _WRONG),
    ],
    "scores.json": [
        *({"test": wrong} for wrong in _WRONG),
        *({"leaderboard": wrong} for wrong in _WRONG),
        *({"folds": wrong} for wrong in _WRONG),
        {"leaderboard": _many(200_000)},
        {"leaderboard": {"\x1b[2J": 0.5, "a" * 10**6: 0.5}},
        {"folds": [0.5] * 1_000_000},
        {"validation": 1.7e308, "test": -1.7e308, "folds": [1.7e308, -1.7e308]},
    ],
    "metrics.json": [
        *({**HISTORY, "values": wrong} for wrong in _WRONG),
        *({**HISTORY, "values": [{"epoch": wrong, "loss": 0.5}]} for wrong in _WRONG),
        *({**HISTORY, "values": [{"epoch": 1, "loss": wrong}]} for wrong in _WRONG),
        *({**HISTORY, "metric_name": wrong} for wrong in _WRONG),
        *({**HISTORY, "metric_minimization": wrong} for wrong in _WRONG[:8]),
        {**HISTORY, "values": [{"epoch": 1, **_many(200_000)}]},
        {**HISTORY, "metric_name": "a" * 10**6},
        {**HISTORY, "values": [{"epoch": 1, "loss": 1.7e308}, {"epoch": 2, "loss": -1.7e308}]},
    ],
    "metrics.jsonl": [
        *({**LINE, "metrics": wrong} for wrong in _WRONG),
        *({**LINE, "step": wrong} for wrong in _WRONG),
        {**LINE, "metrics": _many(200_000)},
        {**LINE, "metrics": {"a" * 10**6: 1, "</script>": 2, "__proto__": 3, "/" * 1000: 4}},
        *({**LINE, "step": step, "metrics": {"a": 1.79769e308}} for step in (-1.7e308, 1.7e308)),
        {**LINE, "not_finite": {"loss": "nan", "a": [], "": "inf"}},
    ],
}  # fmt: skip


@functools.cache
def contents() -> dict[str, dict[str, bytes]]:
    """By the name of a file: texts that are no good, by what they are."""
    found: dict[str, dict[str, bytes]] = {"log.txt": {}, "diff-1.patch": {}}
    for name, values in _TEXTS.items():
        texts = [json.dumps(value).encode() + b"\n" for value in values]
        found[name] = _RAW | {f"{number}": text for number, text in enumerate(texts)}
    return found


def make_run(path: Path, name: str = "", bad: Callable[[Path], object] | None = None) -> Path:
    """A run with all files that there are, one of which is bad."""
    path.mkdir(parents=True)
    (path / "elsewhere").symlink_to("../../outside")
    for each, value in GOOD.items():
        if each == name and bad is not None:
            bad(path / each)
        else:
            (path / each).write_text(value if isinstance(value, str) else json.dumps(value) + "\n")
    return path


def written(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def make_runs(logdir: Path) -> list[Path]:
    """A run for each bad file."""
    made = []
    for name, texts in contents().items():
        for kind, thing in THINGS.items():
            made.append(make_run(logdir / f"{name}-{kind}", name, thing))
        for kind, text in texts.items():
            made.append(make_run(logdir / f"{name}-{kind}", name, written(text)))
    return made


def mutated(text: bytes, chance: random.Random, whole: bool = False) -> bytes:
    """JSON with one value, name or, unless it has to be whole, piece of text in another's place."""
    if not whole and chance.random() < 0.3:
        place, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        piece = chance.choice(
            [b"", b'"', b"]", b"}", b"1e999", b"NaN", b"\xff", text[place:end] * 2]
        )
        return text[:place] + piece + text[end:]
    value = json.loads(text)
    holder, key = chance.choice([*_holders({"": value})])
    if isinstance(holder, dict) and key and chance.random() < 0.2:
        holder[chance.choice(_TRAVERSALS)] = holder.pop(key)
    else:
        holder[key] = chance.choice(_WRONG)
    return json.dumps(value).encode() + b"\n"


def _holders(value: Any) -> Any:
    """All places of values."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key != "":
                yield value, key
            yield from _holders(part)


# ---------------------------------------------------------------- checkpoints


class Runs:
    """An object whose pickle runs code."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("outside/run",)


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


NESTED = {  # two of the one before, sixty times
    "tuples": b")" + b"q\x00h\x00\x86" * 60,
    "lists": b"]" + b"q\x00](h\x00h\x00e" * 60,
    "dicts": b"}" + b"q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u" * 60,
}
_CALLED = [
    "torch\nSize", "torch\ndevice", "collections\nOrderedDict", "collections\nCounter",
    "__builtin__\nset", "_codecs\nencode", "torch._utils\n_rebuild_parameter",
    "torch._utils\n_rebuild_tensor_v2", "__builtin__\ncomplex", "torch.serialization\n_get_layout",
    "torch._utils\n_rebuild_sparse_tensor", "torch._tensor\n_rebuild_from_type_v2", "os\nsystem",
]  # fmt: skip


def pickles() -> dict[str, bytes]:
    """Pickles that take for ever, or run code, by what they are."""
    found = {"code": pickle.dumps(Runs(), protocol=2)[2:-1], "long": _text("a" * 10**5) + b"q\x00"}
    found["long"] = b"](" + found["long"] + b"h\x00" * 10**5 + b"e"
    for kind, nested in NESTED.items():
        storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + nested + b"NK\x01tQ"
        found |= {
            f"{kind}": nested,
            f"{kind} as a storage": b"(" + nested + b"NNNK\x01tQ",
            f"{kind} as the name of one": storage,
            f"{kind} as a key": b"}" + nested + b"Ns",
            f"{kind} as an attribute": b"ccollections\nOrderedDict\n)R" + nested + b"b",
        }
        for call in _CALLED:
            name = f"c{call}\n".encode()
            found[f"{kind} for {call}"] = name + b"(" + nested + b"tR"
            found[f"{kind} in a pair for {call}"] = name + b"](](" + nested + b"K\x01ee\x85R"
    return found


def write_pickle(path: Path, value: bytes, bare: bool = False) -> None:
    """A checkpoint with a value among its weights, or instead of all."""
    whole = value if bare else b"}(" + _text("model_state_dict") + b"}" + _text("x") + value + b"u"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + whole + b".")
        archive.writestr("a/version", b"3\n")
        archive.writestr("a/byteorder", b"little")


def notes() -> list[Any]:
    """What a file may say about itself that no manager says."""
    good = {
        "row": {"epoch": 3, "loss": 0.3},
        "kept": [3],
        "owner": {"id": "a", "host": "b", "pid": 1},
    }
    return [
        *({**good, "row": {"epoch": wrong, "loss": 0.3}, "kept": [wrong]} for wrong in _WRONG),
        *({**good, "row": wrong} for wrong in _WRONG),
        *({**good, "row": {"epoch": 3, "loss": wrong}} for wrong in _WRONG),
        *({**good, "kept": wrong} for wrong in [*_WRONG, [10**30], [_TRAVERSALS[0]]]),
        *({**good, "owner": wrong} for wrong in _WRONG),
        *({**good, "owner": {"id": "a", "host": "b", "pid": wrong}} for wrong in _WRONG),
        {**good, "row": {"epoch": 3}},
        *(wrong for wrong in _WRONG if not isinstance(wrong, dict)),
    ]  # fmt: skip


def save_noted(checkpoint: Any, path: Path, note: Any) -> None:
    """Write a checkpoint with a note that `save_checkpoint` may refuse."""
    with path.open("wb") as file:
        write_archive(checkpoint, file, note)


def copied(source: Path, target: Path) -> Path:
    """A directory as it is, with its links."""
    shutil.copytree(source, target, symlinks=True)
    return target

"""What is saved can be read back; what could not be is refused when it is saved."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batteries import CheckpointError, average_checkpoints, save_checkpoint
from batteries.checkpoint import _contents, peek, read_checkpoint
from batteries.checkpoint._background import BackgroundWriter


def every_kind_of_tensor() -> dict[str, Tensor]:
    """By dtype, layout and device: whatever torch can make."""
    dtypes = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
    tensors = {name: torch.empty(4, dtype=kind) for name, kind in dtypes.items()}
    eye = torch.eye(4)
    for layout in ("coo", "csr", "csc", "bsr", "bsc"):
        blocks = (2, 2) if layout[0] == "b" else None
        kind = getattr(torch, f"sparse_{layout}")
        tensors[layout] = eye.to_sparse(layout=kind, blocksize=blocks)
    tensors["conj"] = torch.ones(2, dtype=torch.cfloat).conj()
    tensors["neg"] = tensors["conj"].imag
    tensors["meta"] = torch.empty(3, device="meta")
    tensors["empty meta"] = torch.empty(0, device="meta")
    tensors["per tensor"] = torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8)
    ones, zeros = torch.ones(4), torch.zeros(4)
    tensors["per channel"] = torch.quantize_per_channel(eye, ones, zeros, 0, torch.quint8)
    tensors["nested"] = torch.nested.nested_tensor([ones, zeros[:2]])
    tensors["jagged"] = torch.nested.nested_tensor([ones, zeros[:2]], layout=torch.jagged)
    tensors["mkldnn"] = eye.to_mkldnn()
    tensors["expanded"] = torch.ones(1).expand(10_000)
    tensors["in a graph"] = torch.ones(2, requires_grad=True) * 2
    return tensors


def refusal(checkpoint: dict[str, Any]) -> str:
    try:
        save_checkpoint(checkpoint, "a.pth")
    except TypeError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_can_be_read() -> None:
    """Of every kind of tensor, what is saved comes back; the rest is refused with its place."""
    refused = set()
    for name, tensor in every_kind_of_tensor().items():
        learned = nn.Parameter(tensor.detach(), requires_grad=False)
        for value in (tensor, learned):
            Path("a.pth").write_bytes(b"old")
            if told := refusal({"model_state_dict": {}, "args": [{"x": value}]}):
                assert told.startswith("a checkpoint cannot hold args[0].x: ")
                assert Path("a.pth").read_bytes() == b"old"
                refused.add(name)
                with (
                    pytest.raises(TypeError, match=r"cannot hold x: "),
                    closing(BackgroundWriter()) as own,
                ):
                    own.submit({"x": value}, lambda copy: None)  # noqa: ARG005
            else:
                peek("a.pth")
                for read in (torch.load("a.pth"), read_checkpoint("a.pth")):
                    back = read["args"][0]["x"]
                    assert (back.dtype, back.shape) == (value.dtype, value.shape)
                    assert type(back) is type(value)
    assert refused >= {
        "torch.int4",
        "meta",
        "per tensor",
        "per channel",
        "nested",
        "jagged",
        "mkldnn",
    }
    assert not refused & {"torch.float32", "torch.float8_e4m3fn", "torch.uint16", "coo", "csr"}


def test_values_in_many_places() -> None:
    """A value that is in so many places that readers refuse the file is refused when saved."""
    text = "x" * 100_000
    Path("a.pth").write_text("before")
    with pytest.raises(TypeError, match="would meet 2,002 values and 100,014,004 letters, bec"):
        save_checkpoint({"rows": [{"config": text} for _ in range(1000)]}, "a.pth")
    assert [path.name for path in Path().iterdir()] == ["a.pth"]
    assert Path("a.pth").read_text() == "before"


def test_an_interrupted_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that interrupts the trial of a dtype is raised, and the next save works."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise TimeoutError("the program's handler of a signal")

    state = {"model_state_dict": {"x": torch.ones(1)}}
    _contents._storable.cache_clear()
    load = torch.load
    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(TimeoutError, match="handler of a signal"):
        save_checkpoint(state, "a.pth")
    monkeypatch.setattr(torch, "load", load)
    save_checkpoint(state, "a.pth")


def test_complex_numbers() -> None:
    """A complex number is read back."""
    save_checkpoint({"model_state_dict": {}, "pole": 1 + 2j}, "a.pth")
    assert read_checkpoint("a.pth")["pole"] == torch.load("a.pth")["pole"] == 1 + 2j


def test_the_old_format() -> None:
    """A file of torch's format of before 1.6 is told as such, with what converts it."""
    state = nn.Linear(2, 1).state_dict()
    checkpoint = {"model_state_dict": state}
    torch.save(checkpoint, "old.pth", _use_new_zipfile_serialization=False)
    readers: list[Any] = [read_checkpoint, peek, lambda path: average_checkpoints([path])]
    for read in readers:
        with pytest.raises(CheckpointError, match=r"old\.pth has the format .* torch 1\.6") as told:
            read("old.pth")
    exec(re.findall(r"torch\.save\(.*\)", str(told.value))[0])
    assert read_checkpoint("converted.pth")["model_state_dict"]["weight"].equal(state["weight"])

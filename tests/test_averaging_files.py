"""Averages of checkpoint files."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from sweeps import sweep
from torch import Tensor, nn
from torch.optim import swa_utils
from wandering import BATCHES, make_model, steps

from batteries import (
    CheckpointError,
    CheckpointManager,
    average_checkpoints,
    load_checkpoint,
    make_checkpoint,
    save_checkpoint,
)
from batteries.averaging import best_checkpoints, greedy_soup, save_average
from batteries.checkpoint import export_safetensors


def save_models(number: int, dtype: torch.dtype = torch.float32, **options: Any) -> list[Path]:
    """Checkpoints of a model that wanders, with an optimizer that has a memory."""
    model, paths = make_model(dtype), []
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch in steps(model, number, **options):
        model(torch.ones(4, 3, dtype=dtype)).sum().backward()
        optimizer.step()
        paths.append(Path(f"exp_{epoch}.pth"))
        checkpoint = make_checkpoint(
            "train", epoch, model, optimizer, metrics={"loss": 1 / (epoch + 1)}
        )
        save_checkpoint(checkpoint, paths[-1])
    return paths


def exact_average(paths: list[Path], weights: list[float]) -> dict[str, Any]:
    states = [torch.load(path)["model_state_dict"] for path in paths]
    return {
        key: np.average([state[key].double().numpy() for state in states], 0, weights)
        for key in states[0]
    }


@pytest.mark.parametrize("weights", [None, sweep([1, 1, 1, 1, 1]), [0, 0.5, 2, 0, 1]])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_average_of_files(dtype: torch.dtype, weights: list[float] | None) -> None:
    """The average is numpy's in float64, to the precision of the dtype."""
    paths = save_models(5, dtype)
    average = average_checkpoints(paths, weights)
    for key, expected in exact_average(paths, weights or [1.0] * 5).items():
        if key == "1.num_batches_tracked":
            assert average[key] == max(torch.load(p)["model_state_dict"][key] for p in paths)
        else:
            tolerance = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            tolerance += torch.finfo(dtype).eps * (dtype.itemsize < 4)
            assert average[key].dtype == dtype
            np.testing.assert_allclose(average[key].double(), expected, tolerance, tolerance)
    model = make_model(dtype)
    model.load_state_dict(average)


KINDS: dict[str, Tensor] = {
    "float": torch.randn(300_000),
    "half": torch.randn(40, 7).half(),
    "brain": torch.randn(1000, 500).bfloat16(),
    "double": torch.randn(5, dtype=torch.float64),
    "complex": torch.randn(5, dtype=torch.complex64),
    "mask": torch.full((3, 3), -torch.inf).triu(1),
    "large": torch.full((3,), 3e38),
    "strided": torch.randn(6, 4).t(),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "slice": torch.arange(10.0)[3:7],
    "scalar": torch.tensor(7),
    "table": torch.arange(12).reshape(3, 4),
    "flag": torch.tensor([True, False]),
    "minus zero": torch.tensor([-0.0, 1.0, 0.0]),
    "pruned": torch.randn(1000) * torch.tensor([0.0, 1.0]).repeat(500),
    "quarter": torch.tensor([1.5, -0.0, 0.0, -3.0]).to(torch.float8_e4m3fn),
    "minus zero, complex": torch.complex(torch.tensor([-0.0, -0.0]), torch.tensor([1.0, -0.0])),
    "empty": torch.empty(0, 3),
}


def bits(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.7]])
@pytest.mark.parametrize("write", [save_checkpoint, torch.save])
def test_copies_of_one_model(write: Callable[..., None], weights: list[float] | None) -> None:
    """The average of copies is the model, bit for bit, in every dtype, layout and kind of file."""
    state = dict(KINDS, tied=KINDS["float"])
    for index in range(7):
        write({"epoch": index, "model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints([f"{index}.pth" for index in range(7)], weights)
    assert list(average) == list(state)
    for key, tensor in state.items():
        assert average[key].stride() == tensor.stride()
        assert bits(average[key]) == bits(tensor), key
    assert average["tied"].data_ptr() == average["float"].data_ptr()


@pytest.mark.parametrize("threads", [2, 3, 100])
def test_any_number_of_threads(threads: int) -> None:
    """The average has the same bits on any number of threads, and damage is found."""
    for index in range(3):
        tensors = {f"{i}": torch.randn(1000 * i + 1) for i in range(60)} | {
            "w": torch.randn(900_000)
        }
        save_checkpoint({"rest": torch.zeros(99), "model_state_dict": tensors}, f"{index}.pth")
    expected = average_checkpoints(["0.pth", "1.pth", "2.pth"])
    torch.set_num_threads(threads)
    try:
        found = average_checkpoints(["0.pth", "1.pth", "2.pth"])
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert list(found) == list(expected)
        damaged = bytearray(Path("2.pth").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        Path("2.pth").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"2.pth is damaged"):
            average_checkpoints(["0.pth", "1.pth", "2.pth"])
    finally:
        torch.set_num_threads(1)


def test_other_layouts_and_forms() -> None:
    """Files with other strides, bare state dicts and safetensors are averaged by name."""
    first, second = ({"a": torch.randn(4, 6), "b": torch.randn(9)} for _ in range(2))
    save_checkpoint({"model_state_dict": first}, "0.pth")
    save_checkpoint(
        {"model_state_dict": {"b": second["b"], "a": second["a"].t().contiguous().t()}}, "1.pth"
    )
    torch.save(dict(reversed(second.items())), "2.pth")
    export_safetensors("0.pth", "3.safetensors")
    expected = {key: (first[key] + second[key]) / 2 for key in first}
    for paths in (["0.pth", "1.pth", "2.pth", "3.safetensors"], ["3.safetensors", "1.pth"]):
        found = average_checkpoints(paths)
        torch.testing.assert_close({key: found[key] for key in expected}, expected)


@pytest.mark.parametrize("seed", range(5))
def test_any_layout(seed: int) -> None:
    """However the tensors of each file lie and share their memory, the average is torch's."""
    generator = np.random.default_rng(seed)
    states = [{f"{i}": torch.randn(5 + i, 300, 2) for i in range(6)} for _ in range(4)]
    for index, state in enumerate(states):
        keys = [str(i) for i in generator.permutation(6)]
        flat = torch.cat([state[key].reshape(-1) for key in keys])
        views = torch.split(flat, [state[key].numel() for key in keys])
        laid = {key: view.view_as(state[key]) for key, view in zip(keys, views, strict=True)}
        for key in keys[: generator.integers(6)]:
            laid[key] = state[key].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        save_checkpoint({"model_state_dict": laid}, f"{index}.pth")
    export_safetensors("3.pth", "3.safetensors")
    found = average_checkpoints(["0.pth", "1.pth", "2.pth", "3.safetensors"], [1, 2, 3, 4])
    for key, value in found.items():
        exact = sum(weight * state[key].double() for weight, state in enumerate(states, start=1))
        torch.testing.assert_close(value.double(), exact / 10, atol=1e-6, rtol=0)


def test_columns_of_one_matrix() -> None:
    """Tensors that lie between each other's rows are averaged, and what is left there is zero."""
    matrices = [torch.randn(50, 9), torch.randn(50, 9)]
    for index, matrix in enumerate(matrices):
        state = {"query": matrix[:, :3], "key": matrix[:, 3:6]}
        torch.save({"model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints(["0.pth", "1.pth"])
    mean = (matrices[0] + matrices[1]) / 2
    mean[:, 6:] = 0
    torch.testing.assert_close(average["query"].as_strided((50, 9), (9, 1)), mean)
    assert average["key"].data_ptr() == average["query"].data_ptr() + 12


def test_tensors_at_odd_places() -> None:
    """Tensors of safetensors that are not aligned in their file are averaged too."""
    weight = torch.randn(300_000)
    for pad in range(4):
        header = {"w": {"dtype": "F32", "shape": [300_000], "data_offsets": [0, 1_200_000]}}
        text = json.dumps(header).encode() + b" " * pad
        length = len(text).to_bytes(8, "little")
        Path(f"{pad}.safetensors").write_bytes(length + text + (weight + pad).numpy().tobytes())
    average = average_checkpoints([f"{pad}.safetensors" for pad in range(4)])
    torch.testing.assert_close(average["w"], weight + 1.5, atol=1e-5, rtol=0)


def test_expanded_tensors() -> None:
    """A tensor that is expanded in a file is averaged in full."""
    torch.save({"model_state_dict": {"w": torch.ones(1).expand(5)}}, "0.pth")
    torch.save({"model_state_dict": {"w": torch.arange(5.0)}}, "1.pth")
    for paths in (["0.pth", "1.pth"], ["1.pth", "0.pth"]):
        assert average_checkpoints(paths)["w"].tolist() == [0.5, 1, 1.5, 2, 2.5]


def test_numbers_of_8_bits() -> None:
    """float8 weights are averaged in float32; those that torch cannot compute with are named."""
    for index in range(3):
        values = torch.tensor([1.0, 2.0 + index, -8.0]).to(torch.float8_e4m3fn)
        torch.save({"model_state_dict": {"w": values}}, f"{index}.pth")
    average = average_checkpoints([f"{index}.pth" for index in range(3)])["w"]
    assert average.dtype == torch.float8_e4m3fn
    assert average.float().tolist() == [1, 3, -8]
    packed = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    torch.save({"model_state_dict": {"w": packed}}, "packed.pth")
    with pytest.raises(
        CheckpointError, match=r"\['w'\] in packed.pth is .*, with which torch cannot"
    ):
        average_checkpoints(["packed.pth"])


def test_counters_that_share_memory() -> None:
    """Integers of one element become the largest each, wherever they lie."""
    for index in range(2):
        counters = torch.tensor([1 + index, 9, 2 - index])
        state = {"a": counters[0], "b": counters[2], "c": torch.tensor(index, dtype=torch.uint16)}
        torch.save({"model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints(["0.pth", "1.pth"])
    assert [int(average[key]) for key in "abc"] == [2, 2, 1]


def test_integers_and_bools() -> None:
    """Counters become the largest, tables are the first's, and bools must agree."""
    for index, seen in enumerate([True, True, False]):
        counter, table = torch.tensor(5 - index), torch.tensor([index, 1])
        state = {"n": counter, "table": table, "seen": torch.tensor(seen)}
        save_checkpoint({"model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints(["1.pth", "0.pth"])
    assert (int(average["n"]), average["table"].tolist(), bool(average["seen"])) == (
        5,
        [1, 1],
        True,
    )
    with pytest.raises(
        CheckpointError, match=r"\['seen'\] is bool and not the same in 0.pth and 2.pth"
    ):
        average_checkpoints(["0.pth", "1.pth", "2.pth"])


def test_files_that_do_not_fit() -> None:
    """Other names, shapes and dtypes are errors that name both files and the key."""
    states = {
        "a": {"w": torch.zeros(2)},
        "b": {"w": torch.zeros(3)},
        "c": {"w": torch.zeros(2).double()},
        "d": {"v": torch.zeros(2)},
    }
    for name, state in states.items():
        save_checkpoint({"model_state_dict": state}, f"{name}.pth")
    messages = {
        "b": r"\['w'\] is \(2,\) float32 in a.pth but \(3,\) float32 in b.pth",
        "c": r"\['w'\] is \(2,\) float32 in a.pth but \(2,\) float64 in c.pth",
        "d": r"\['w'\] is in a.pth but not in d.pth",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            average_checkpoints(["a.pth", f"{name}.pth"])
    save_checkpoint({"epoch": 1}, "e.pth")
    with pytest.raises(
        CheckpointError, match=r"e.pth has no model_state_dict to average; found epoch"
    ):
        average_checkpoints(["a.pth", "e.pth"])
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint f.pth"):
        average_checkpoints(["f.pth"])
    for weights, message in (([1.0], "1 weights for 2"), ([1.0, -1.0], "expected positive")):
        with pytest.raises(ValueError, match=message):
            average_checkpoints(["a.pth", "a.pth"], weights)
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average_checkpoints([])
    for dtype in ("float32", None, torch.complex64, torch.int32, torch.float8_e4m3fn):
        wrong: Any = dtype
        with pytest.raises(TypeError, match=rf"dtype is {dtype!r}; expected .*torch\.float32"):
            average_checkpoints(["a.pth"], dtype=wrong)


@pytest.mark.parametrize("write", [save_checkpoint, torch.save])
def test_damaged_files(write: Callable[..., None]) -> None:
    """One flipped bit, wherever it is, is an error: nothing damaged is averaged."""
    for name in ("0.pth", "1.pth"):
        write({"model_state_dict": {"w": torch.randn(500_000)}, "rest": torch.zeros(9)}, name)
    whole = Path("1.pth").read_bytes()
    places = [*range(40, len(whole), len(whole) // 23), len(whole) - 5]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        Path("1.pth").write_bytes(damaged)
        try:
            average = average_checkpoints(["0.pth", "1.pth"])
        except CheckpointError:
            continue
        # torch.save pads its records, and sums up none of that
        assert write is torch.save
        assert torch.equal(average["w"], undamaged_average())
    Path("1.pth").write_bytes(whole[:-100_000])
    with pytest.raises(CheckpointError, match=r"1.pth"):
        average_checkpoints(["0.pth", "1.pth"])


def test_damage_in_another_order() -> None:
    """One flipped bit is an error too in a file whose tensors lie in another order."""
    state = {f"{i}": torch.randn(300_000) for i in range(4)}
    save_checkpoint({"model_state_dict": state}, "0.pth")
    save_checkpoint({"model_state_dict": dict(reversed(state.items()))}, "1.pth")
    whole = Path("1.pth").read_bytes()
    for place in range(40, len(whole), len(whole) // 11):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        Path("1.pth").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"1.pth"):
            average_checkpoints(["0.pth", "1.pth"])


def test_the_bits_of_a_running_average() -> None:
    """Each number is, bit for bit, torch's lerp of one file after the other, wherever it lies."""
    states = []
    for index in range(5):
        sizes = {"long": 700_001, "one": 1, "short": 3000, "longer": 500_000}
        states.append({key: torch.randn(size) for key, size in sizes.items()})
        states[-1]["half"] = torch.randn(300_000).bfloat16()
        more = {"note": "moves what is behind it" * 9 * index, "rest": torch.randn(50_000 * index)}
        save_checkpoint({**more, "model_state_dict": states[-1]}, f"{index}.pth")
    average = average_checkpoints([f"{index}.pth" for index in range(5)])
    for key, value in average.items():
        expected = states[0][key].float()
        for index in range(1, 5):
            expected.lerp_(states[index][key].float(), 1.0 / (index + 1.0))
        assert bits(value) == bits(expected.to(value.dtype)), key


def undamaged_average() -> Tensor:
    first, second = (torch.load(name)["model_state_dict"]["w"] for name in ("0.pth", "1.pth"))
    return torch.lerp(first, second, 0.5)


def test_an_average_that_says_what_it_is() -> None:
    """A saved average has what was averaged, no optimizer, and batch norm's statistics if asked."""
    paths = save_models(3)
    save_average(paths, "swa.pth", weights=[1, 1, 2])
    found = load_checkpoint("swa.pth", make_model())
    assert set(found) == {"stage", "model_state_dict", "averaged"}
    assert found["averaged"][2] == {
        "path": "exp_2.pth", "weight": 0.5, "stage": "train", "epoch": 2, "metrics": {"loss": 1 / 3}
    }  # fmt: skip
    model = make_model()
    save_average(paths, "bn.pth", model=model, loader=BATCHES)
    oracle = make_model()
    oracle.load_state_dict(average_checkpoints(paths))
    swa_utils.update_bn(BATCHES, oracle)
    loaded = make_model()
    load_checkpoint("bn.pth", loaded)
    torch.testing.assert_close(loaded.state_dict(), oracle.state_dict())
    wrapped = nn.DataParallel(make_model())
    save_average(paths, "wrapped.pth", model=wrapped)
    torch.testing.assert_close(wrapped.module.state_dict(), average_checkpoints(paths))
    with pytest.raises(ValueError, match="a loader but no model"):
        save_average(paths, "c.pth", loader=BATCHES)


def test_an_average_that_does_not_fit() -> None:
    """A model that the average does not fit stays as it was. A compiled one gets the average."""
    paths = save_models(2)
    other = make_model()
    other.register_buffer("another", torch.zeros(1))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError, match=r"model_state_dict\['another'\] is not in the average"):
        save_average(paths, "swa.pth", model=other)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)
    assert not Path("swa.pth").exists()
    model = make_model()
    compiled: Any = torch.compile(model, backend="eager")
    save_average(paths, "swa.pth", model=compiled)
    torch.testing.assert_close(dict(model.state_dict()), dict(average_checkpoints(paths)))


def test_the_best_checkpoints() -> None:
    """The best few of a log directory come best first; more than there are is an error."""
    manager = CheckpointManager(
        "runs/a", metric="accuracy", metric_minimization=False, save_n_best=3
    )
    for epoch, score in enumerate([0.1, 0.5, float("nan"), 0.4, 0.9], start=1):
        manager.process(score, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    assert [path.name for path in best_checkpoints("runs/a", 3)] == [
        "exp_5.pth",
        "exp_2.pth",
        "exp_4.pth",
    ]
    with pytest.raises(FileNotFoundError, match=r"runs/a has 3 exp_\* with a score, not 4"):
        best_checkpoints("runs/a", 4)
    with pytest.raises(FileNotFoundError, match=r"metrics.json is not there"):
        best_checkpoints("runs/b", 1)
    with pytest.raises(ValueError, match="asked for -1; expected 1 or more"):
        best_checkpoints("runs/a", -1)
    Path("runs/a/metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"runs/a/metrics\.json is not a CheckpointManager's: "):
        best_checkpoints("runs/a", 1)


@pytest.mark.parametrize("minimize", [False, True])
def test_greedy_soup(minimize: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The soup is the best first; what makes it worse stays out, and its score never falls."""
    weights = [2.2, 4.0, 9.0, 3.4, float("nan")]
    for index, weight in enumerate(weights):
        save_checkpoint({"model_state_dict": {"w": torch.tensor(weight)}}, f"{index}.pth")
    sign = 1 if minimize else -1

    def evaluate(state: dict[str, Tensor]) -> float:
        return sign * abs(float(state["w"]) - 3)

    with caplog.at_level("INFO", "batteries"):
        soup = greedy_soup([f"{i}.pth" for i in range(5)], evaluate, metric_minimization=minimize)
    assert [path.name for path in soup.paths] == ["3.pth", "0.pth"]
    assert abs(soup.score) <= abs(float(torch.tensor(weights[3])) - 3)
    assert evaluate(soup.state) == soup.score
    assert len(caplog.messages) == 4
    assert [made.taken for made in soup.decisions] == [True, True, False, False]
    with pytest.raises(ValueError, match="returned NaN for all of the 1 checkpoints"):
        greedy_soup(["4.pth"], evaluate, metric_minimization=minimize)


def test_a_soup_takes_what_does_not_make_it_worse() -> None:
    """A checkpoint with which the score stays as it is goes in."""
    for index in range(3):
        save_checkpoint({"model_state_dict": {"w": torch.tensor(float(index))}}, f"{index}.pth")
    paths = [f"{index}.pth" for index in range(3)]
    soup = greedy_soup(paths, lambda state: 0.5, metric_minimization=True)  # noqa: ARG005
    assert len(soup.paths) == 3
    assert float(soup.state["w"]) == 1


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("a.pth", "a.pth"),
        sweep("a.pth", "reversed.pth"),
        ("a.pth", "transposed.pth"),
        sweep("a.safetensors", "a.safetensors"),
    ],
)
def test_memory_is_one_model(first: str, other: str) -> None:
    """Ten files take the memory of one model and little more, on any number of threads."""
    state = {f"{i}": torch.randn(2**10, 2**10) for i in range(20)}
    states = {
        "a": state,
        "reversed": dict(reversed(state.items())),
        "transposed": {key: value.t() for key, value in state.items()},
        "small": {"w": torch.zeros(1)},
    }
    for name, tensors in states.items():
        save_checkpoint({"model_state_dict": tensors}, f"{name}.pth")
    for name in ("a", "small"):
        export_safetensors(f"{name}.pth", f"{name}.safetensors")
    script = f"""
from pathlib import Path
import torch
from batteries import average_checkpoints
torch.set_num_threads(16)
def peak():  # as the system counts it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
average_checkpoints(["small.pth", "small.safetensors"] * 5)
before = peak()
average_checkpoints(["{first}"] + ["{other}"] * 9)
print(peak() - before)
"""
    result = warm.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 80 + 64


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_ties_of_all_files(order: tuple[int, ...]) -> None:
    """What is tied in some files alone has its own average; what is tied in all stays tied."""
    states = []
    for number in range(3):
        one, two = (torch.randn(3, 4) for _ in range(2))
        flat = torch.randn(24)
        states.append(
            {
                "tied": two,
                "always": two,
                "sometimes": two if number == 1 else one,
                "left": flat[:12].view(3, 4) if number != 2 else flat.view(3, 8)[:, ::2],
                "right": flat[12:].view(3, 4) if number != 2 else flat.view(3, 8)[:, 1::2],
            }
        )
    paths = [Path(f"{number}.pth") for number in order]
    for number in order:
        save_checkpoint({"model_state_dict": states[number]}, f"{number}.pth")
    average = average_checkpoints(paths)
    for key in states[0]:
        expected = torch.stack([state[key] for state in states]).double().mean(0).float()
        torch.testing.assert_close(average[key], expected)
    storages = {key: value.untyped_storage().data_ptr() for key, value in average.items()}
    assert storages["tied"] == storages["always"] != storages["sometimes"]


def test_best_of_a_sharded_manager() -> None:
    """The best epochs of a sharded manager are its directories, which are averaged like files."""
    manager = CheckpointManager("runs/a", sharded=True)
    for epoch, loss in enumerate([0.5, 0.3, 0.4], start=1):
        state = {"weight": torch.full((2,), float(epoch))}
        manager.process(loss, epoch, {"epoch": epoch, "model_state_dict": state})
    best = best_checkpoints("runs/a", 2)
    assert [path.name for path in best] == ["exp_2.dcp", "exp_3.dcp"]
    assert save_average(best, "best.pth")["model_state_dict"]["weight"].tolist() == [2.5, 2.5]
    next(best[0].glob("*.distcp")).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"exp_2\.dcp is damaged"):
        average_checkpoints(best)

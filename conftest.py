"""Fixtures for the unit tests and for the examples in docstrings."""

import gc
import json
import os
import random
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

# Threads that wait would spin, and take the cores from the other tests. Read at torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from torch import nn

import batteries
import batteries.scoreboard

gc.disable()  # until all tests are collected, which takes a fifth less time

# Ignored where a shell runs the tests in the background; their processes inherit what it is here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _names_for_examples(doctest_namespace: dict[str, object]) -> None:
    names = {name: getattr(batteries, name) for name in batteries.__all__}
    doctest_namespace.update(names, torch=torch, nn=nn, np=np, random=random)
    doctest_namespace["DataLoader"] = batteries.data.DataLoader
    rooms = {
        **vars(batteries.splits),
        **vars(batteries.averaging),
        **vars(batteries.blend),
        **vars(batteries.training),
        "load": batteries.predictions.load,
    }
    names = {name: value for name, value in rooms.items() if name[0] != "_"}
    doctest_namespace.update({k: v for k, v in names.items() if not isinstance(v, ModuleType)})
    doctest_namespace |= {"json": json, "Path": Path}
    own = ("RunInfo", "Runs", "read_runs")
    doctest_namespace |= {name: getattr(batteries.scoreboard, name) for name in own}
    doctest_namespace["read_lines"] = batteries.loggers.read_lines
    doctest_namespace["PerRank"] = batteries.distributed.PerRank


# Begun first, so that no process is left alone with one of them at the end.
LONG = (
    "distributed_deaths",
    "preemption",
    "loggers",
    "documentation",
    "examples",
    "hostile",
    "splits",
    "report",
    "training",
)


def is_long(item: pytest.Item) -> bool:
    return item.path.name.removeprefix("test_").startswith(LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The files with trackers go to one process, since MLflow takes seconds to begin."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "trackers" if "/test_loggers" in file else file

    return ByFile(config, log)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # no later collection looks at the modules of all tests again
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=is_long, reverse=True)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU that PyTorch can use"))

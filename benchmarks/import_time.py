"""What importing a library adds to importing torch, each time in a fresh process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from measure import Timings, report

TURNS = 7
MODULES = {
    "batteries": "batteries",
    "ignite": "ignite",
    "accelerate": "accelerate",
    "Lightning": "lightning",
}
PROGRAM = """
import time, torch
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def microseconds(module: str) -> float:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(module=module)]
    # pip compiles the others to bytecode; ours is compiled by the first import, if it may be kept
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    return float(printed.splitlines()[-1]) * 1e6


def main() -> None:
    timings: Timings = {
        name: None if importlib.util.find_spec(module.split(".")[0]) is None else []
        for name, module in MODULES.items()
    }
    for turn in range(TURNS + 1):
        for name, times in timings.items():
            if times is not None:
                taken = microseconds(MODULES[name])
                if turn > 0:  # the first one compiles to bytecode and reads from the disk
                    times.append(taken)
    report("import_time: added to import torch", timings, reference="batteries", unit="ms")

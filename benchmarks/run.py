"""Benchmarks against the libraries that do the same: python benchmarks/run.py [NAME ...].

Names: loop, language_model, to_device, seed_all, import_time, checkpoints, training, predictions,
collectives, record, page, averaging, blending, hugging_face. All take about twenty-five minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import warnings
from pathlib import Path

import averaging
import blending
import checkpoints
import collectives
import hugging_face
import import_time
import language_model
import loop
import page
import predictions
import record
import seed_all
import to_device
import torch
import training
from measure import print_table

BENCHMARKS = {
    "loop": loop.main,
    "language_model": language_model.main,
    "to_device": to_device.main,
    "seed_all": seed_all.main,
    "import_time": import_time.main,
    "checkpoints": checkpoints.main,
    "training": training.main,
    "predictions": predictions.main,
    "collectives": collectives.main,
    "record": record.main,
    "page": page.main,
    "averaging": averaging.main,
    "blending": blending.main,
    "hugging_face": hugging_face.main,
}
PACKAGES = [
    "batteries",
    "torch",
    "numpy",
    "tqdm",
    "accelerate",
    "lightning",
    "pytorch-lightning",
    "pytorch-ignite",
    "torchtnt",
    "torchmetrics",
    "tensorboard",
    "tensorboardX",
    "wandb",
    "mlflow",
    "scipy",
    "scikit-learn",
    "pandas",
    "polars",
    "datasets",
]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Its name, which only /proc knows on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; choose {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers' advice on what is not measured here
    print_table(
        [
            ["machine", f"{processor()}, {os.cpu_count()} cores, {platform.system()}"],
            ["python", platform.python_version()],
            *([package, version(package)] for package in PACKAGES),
        ]
    )
    for name in names:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()

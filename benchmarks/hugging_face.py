"""The data loader over Hugging Face's map-style datasets, beside torch's own."""

from __future__ import annotations

import time
from typing import Any

from measure import Contender, peer, report, take_turns
from torch.utils.data import DataLoader as TorchLoader

from batteries.data import DataLoader

ROWS, BATCH_SIZE = 6400, 32


def run_through(loader: Any) -> Contender:
    def run() -> None:
        for _ in loader:
            pass

    return run


def lengths(rows: dict[str, list[str]]) -> dict[str, list[int]]:
    """A transform that costs next to nothing."""
    return {"text": [len(text) for text in rows["text"]]}


def main() -> None:
    library = peer("datasets")
    if library is None:
        print("\n### hugging_face: datasets is not installed\n")
        return
    numbers = library.Dataset.from_dict(
        {"x": [float(row) for row in range(ROWS)], "y": list(range(ROWS))}
    )
    texts = library.Dataset.from_dict({"text": [f"row {row}" for row in range(ROWS)]})
    kinds = {
        "rows": numbers,
        "with_format('torch')": numbers.with_format("torch"),
        "with_transform": texts.with_transform(lengths),
    }
    for name, data in kinds.items():
        for workers in (0, 2):
            options: dict[str, Any] = {"shuffle": True, "num_workers": workers}
            contenders: dict[str, Contender | None] = {
                "torch": run_through(TorchLoader(data, BATCH_SIZE, **options)),
                "batteries": run_through(DataLoader(data, BATCH_SIZE, **options)),
            }
            # Without workers, processor time: other programs change it less.
            clock = time.perf_counter if workers else time.process_time
            timings = take_turns(contenders, turns=15, steps=ROWS // BATCH_SIZE, clock=clock)
            title = f"hugging_face: a batch of {BATCH_SIZE}, {name}, {workers} workers"
            report(title, timings, reference="torch", added=True)

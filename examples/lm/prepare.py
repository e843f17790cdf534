"""Make files of tokens from the sources of Python's standard library, or from your own texts.

    python examples/lm/prepare.py
    python examples/lm/prepare.py my.txt more/*.txt --out runs/my-tokens

Takes a second. Here, a token is a byte. `experiment.py` runs the first command if there are no
tokens yet.
"""

from __future__ import annotations

import argparse
import hashlib
import sysconfig
from pathlib import Path

import numpy as np
from datasets import DTYPE

PARTS = {"train": 0.9, "valid": 0.95, "test": 1.0}  # where each part ends


def standard_library() -> list[Path]:
    """Find Python's own sources, without the tests."""
    root = Path(sysconfig.get_path("stdlib"))
    apart = {"test", "tests", "site-packages", "dist-packages", "idlelib", "__pycache__"}
    return [path for path in root.rglob("*.py") if not apart & set(path.relative_to(root).parts)]


def prepare(files: list[Path], folder: Path) -> None:
    """Write train.bin, valid.bin and test.bin. If there are many files, each part has its own."""
    texts = [path.read_bytes() for path in files]
    texts.sort(key=lambda text: hashlib.blake2b(text).digest())  # mixed, but always in this order
    text = b"\0".join(texts)
    tokens = np.frombuffer(text, np.uint8).astype(DTYPE)  # put your tokenizer here
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, end in PARTS.items():
        stop = int(end * len(tokens))
        unfinished = folder / f"{name}.unfinished"
        tokens[start:stop].tofile(unfinished)
        unfinished.replace(folder / f"{name}.bin")
        print(f"{folder / name}.bin has {stop - start:,} tokens")
        start = stop


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: the standard library")
    parser.add_argument("--out", type=Path, default="runs/tokens")
    args = parser.parse_args()
    prepare(args.files or standard_library(), args.out)


if __name__ == "__main__":
    main()

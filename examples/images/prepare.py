"""Draw noisy images of shapes, as PNG files in a folder for each class.

    python examples/images/prepare.py

Takes about 10 seconds. `experiment.py` calls it if there are no images yet.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, FINER = 32, 3  # pixels of a side; images are drawn 3 times as large, then reduced
IMAGES = {"train": 300, "valid": 60, "test": 60}  # images of each class

Corners = list[tuple[float, float]]  # around the origin, at most 1 away from it


def polygon(corners: int, turn: float = 0.0) -> Corners:
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def star(points: int) -> Corners:
    inner = [(0.45 * x, 0.45 * y) for x, y in polygon(points, math.pi / points)]
    return [corner for pair in zip(polygon(points), inner, strict=True) for corner in pair]


def cross() -> Corners:
    quarter = [(0.95, -0.3), (0.95, 0.3), (0.3, 0.3)]
    turned = [(quarter, 1, 0), (quarter, 0, 1), (quarter, -1, 0), (quarter, 0, -1)]
    return [(x * c - y * s, x * s + y * c) for corners, c, s in turned for x, y in corners]


SHAPES: dict[str, Corners] = {
    "arrow": [(1, 0), (0.1, 0.8), (0.1, 0.3), (-0.9, 0.3), (-0.9, -0.3), (0.1, -0.3), (0.1, -0.8)],
    "bar": [(1.0, 0.25), (-1.0, 0.25), (-1.0, -0.25), (1.0, -0.25)],
    "circle": polygon(40),
    "cross": cross(),
    "half": [*polygon(40)[:21]],
    "hexagon": polygon(6),
    "square": polygon(4),
    "star_4": star(4),
    "star_6": star(6),
    "triangle": polygon(3),
}  # fmt: skip


def draw(corners: Corners, random: np.random.Generator) -> Image.Image:
    """Draw a shape with random size, place, angle and colour, in front of lines, with noise."""
    side = SIDE * FINER
    ground, colour = random.uniform(0, 110, 3), random.uniform(120, 255, 3)
    image = Image.new("RGB", (side, side), tuple(map(int, ground)))
    pen = ImageDraw.Draw(image)
    for line in random.uniform(0, side, (2, 4)):
        pen.line([tuple(line[:2]), tuple(line[2:])], tuple(map(int, random.uniform(0, 255, 3))), 3)
    size = random.uniform(0.22, 0.45) * side
    x, y = random.uniform(size, side - size, 2)
    turn = random.uniform(0, 2 * math.pi)
    cosine, sine = size * math.cos(turn), size * math.sin(turn)
    placed = [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in corners]
    pen.polygon(placed, tuple(map(int, colour)))
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    noisy = pixels + random.normal(0, random.uniform(10, 45), pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def prepare(folder: Path, images: dict[str, int] = IMAGES) -> None:
    """Write folder/train/circle/0000.png and so on. The images are the same each time."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, (part, count) in enumerate(images.items()):
        for label, (name, corners) in enumerate(SHAPES.items()):
            random = np.random.default_rng([number, label])
            (unfinished / part / name).mkdir(parents=True)
            for image in range(count):
                draw(corners, random).save(unfinished / part / name / f"{image:04}.png")
    unfinished.rename(folder)
    print(f"{folder} has {sum(images.values()) * len(SHAPES):,} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default="runs/shapes")
    for part, count in IMAGES.items():
        parser.add_argument(f"--{part}", type=int, default=count, help="images of each class")
    args = vars(parser.parse_args())
    prepare(args["out"], {part: args[part] for part in IMAGES})


if __name__ == "__main__":
    main()

"""Generate the competition: visits to shops. Will the customer come back within a month?

    python examples/tabular/prepare.py data

`train.csv` has 60 shops. `test.csv` has 30 other shops, in later months. `sample_submission.csv`
shows the form of a submission. Only `score.py` reads `hidden/answers.csv`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl

SHOPS, OF_TRAIN = 90, 60
CITIES = ["Bergen", "Ghent", "Lille", "Porto", "Turin", "Vigo"]
CHANNELS = ["app", "counter", "phone", "site"]


def draw(visits: int, seed: int) -> pl.DataFrame:
    chance = np.random.default_rng(seed)
    rows = SHOPS * visits
    shop = np.repeat(np.arange(SHOPS), visits)
    later = shop >= OF_TRAIN
    quality = chance.normal(0, 0.6, SHOPS)  # in no column, but rows of a shop share it
    city = chance.integers(0, len(CITIES), SHOPS)[shop]
    channel = chance.choice(len(CHANNELS), rows, p=[0.4, 0.3, 0.1, 0.2])
    day = chance.integers(0, 270, rows) + 270 * later
    age = chance.normal(45, 14, rows).clip(18, 90).round()
    income = np.exp(chance.normal(10 + 0.01 * (age - 45), 0.5, rows)).round(-2)
    items = chance.poisson(3 + 2 * (channel == 3), rows) + 1
    price = (items * np.exp(chance.normal(2.5, 0.4, rows))).round(2)
    wait = chance.gamma(2, 4, rows).round()
    signal = (
        *(quality[shop], np.array([0.5, -0.4, 0.2, 0, -0.3, 0.1])[city]),
        *(-((age - 40) ** 2) / 500, 0.8 * (np.log(income) - 10), -0.06 * wait),
        np.where(channel == 0, 0.3 * items, -0.1 * items) + 0.3 * np.sin(day / 58),
    )
    returns = chance.random(rows) < 1 / (1 + np.exp(-sum(signal)))
    order = np.argsort(day, kind="stable")
    table = pl.DataFrame(
        {
            "date": np.datetime64("2023-01-01") + day[order],
            "shop": [f"shop {number:02}" for number in shop[order]],
            "city": [CITIES[number] for number in city[order]],
            "channel": [CHANNELS[number] for number in channel[order]],
            "age": age[order],
            "income": np.where(chance.random(rows) < 0.1 + 0.2 * (channel == 2), np.nan, income)[
                order
            ],
            "items": items[order],
            "price": price[order],
            "wait": np.where(channel == 3, np.nan, wait)[order],
            "counter": np.arange(rows) // 3 * 3,  # of the till: it only shows the time
            "returns": returns[order].astype(int),
        }
    )
    return table.with_columns(
        pl.col("income", "wait").fill_nan(None), later=pl.Series(later[order])
    )


def main(folder: Path, visits: int = 60, seed: int = 7) -> None:
    (folder / "hidden").mkdir(parents=True, exist_ok=True)
    table = draw(visits, seed)
    for later, name in ((False, "train"), (True, "test")):
        part = table.filter(pl.col("later") == later).drop("later")
        ids = pl.Series([f"{name}_{row:04}" for row in range(len(part))])
        part = part.select(ids.alias("id"), pl.all())
        if later:
            public = np.random.default_rng(seed + 1).random(len(part)) < 0.3
            answers = part.select("id", "returns", pl.Series("public", public))
            answers.write_csv(folder / "hidden/answers.csv")
            part.select("id", returns=pl.lit(0)).write_csv(folder / "sample_submission.csv")
            part = part.drop("returns")
        part.write_csv(folder / f"{name}.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

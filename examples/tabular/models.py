"""A neural network with embeddings, and boosted trees."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, numbers: int, codes: list[int], width: int = 64) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(number, 4) for number in codes)
        self.layers = nn.Sequential(
            *(nn.Linear(numbers + 4 * len(codes), width), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 1)),
        )

    def forward(
        self,
        numbers: Tensor,  # (batch, numbers)
        codes: Tensor,  # (batch, categories)
    ) -> Tensor:  # (batch,), logits
        parts = [embed(codes[:, at]) for at, embed in enumerate(self.embeddings)]
        logits: Tensor = self.layers(torch.cat([numbers, *parts], dim=1))
        return logits[:, 0]


def boosted(categories: list[int], seed: int) -> dict[str, Any]:
    """Make boosted trees of scikit-learn, and of LightGBM if it is installed.

    Args:
        categories: The positions of the features that are codes.
    """
    models: dict[str, Any] = {
        "boosting": HistGradientBoostingClassifier(
            learning_rate=0.05,
            max_iter=120,
            max_leaf_nodes=12,
            min_samples_leaf=20,
            categorical_features=categories,
            random_state=seed,
        )
    }
    if importlib.util.find_spec("lightgbm"):
        from lightgbm import LGBMClassifier  # type: ignore[import-not-found,unused-ignore]

        models["LightGBM"] = LGBMClassifier(
            learning_rate=0.03, n_estimators=200, num_leaves=12, colsample_bytree=0.7,
            random_state=seed, verbose=-1,
        )  # fmt: skip
    return models

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn

from batteries import load_checkpoint, make_checkpoint, save_checkpoint

metrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


@pytest.mark.beside("torchmetrics")
def test_metrics_go_on() -> None:
    """Metrics that resume inside an epoch end with scikit-learn's values of all samples."""
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0))
    targets = (scores + torch.arange(40) % 3 * 0.2 > 0.6).long()
    first, other = (
        metrics.MetricCollection(
            [metrics.classification.BinaryAccuracy(), metrics.classification.BinaryAUROC()]
        )
        for _ in range(2)
    )
    first.update(scores[:30], targets[:30])
    save_checkpoint(make_checkpoint("valid", 1, nn.Linear(1, 1), scores=first), "last.pth")
    load_checkpoint("last.pth", scores=other)
    other.update(scores[30:], targets[30:])
    values = [float(value) for value in other.compute().values()]
    expected = [accuracy_score(targets, scores > 0.5), roc_auc_score(targets, scores)]
    assert values == pytest.approx(expected)

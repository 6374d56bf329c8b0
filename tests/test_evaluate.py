"""Counting correct predictions."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mixerzoo.errors import DataError
from mixerzoo.inference.evaluate import evaluate


def test_evaluate_counts():
    class Table(nn.Module):
        def forward(self, x):
            return x

    falling = [6.0, 5, 4, 3, 2, 1]
    logits = torch.tensor([[0.9, 0.1, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0.2], falling, falling])
    labels = torch.tensor([0, 0, 5, 4])
    model = Table().train()
    accuracy = evaluate(model, DataLoader(TensorDataset(logits, labels), batch_size=3))
    assert (accuracy.top1, accuracy.top5, accuracy.num_images) == (0.25, 0.75, 4)
    assert model.training
    two = evaluate(model, [(logits[:, :2], torch.tensor([0, 0, 0, 1]))])
    assert (two.top1, two.top5) == (0.5, 1.0)
    with pytest.raises(DataError, match="no images"):
        evaluate(model, [])


@pytest.mark.parametrize("amp", [False, True])
def test_autocast_is_what_was_asked_for(amp):
    seen = []

    class Layer(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    evaluate(Layer(4, 3), [(torch.randn(2, 4), torch.tensor([0, 1]))], amp=amp)
    assert seen == [torch.bfloat16 if amp else torch.float32]

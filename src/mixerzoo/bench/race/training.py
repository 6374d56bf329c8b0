"""The training step that is raced: bfloat16 autocast over float32 parameters, cross-entropy, fused AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.bench.race.terms import Task

_LEARNING_RATE = 1e-6  # the weights hardly move, so that no step differs from another in kind


class TrainingStep:
    """A model's compiled forward and backward pass with the optimiser's step.

    Args:
        model: In float32 on the task's device.
        task: Its device decides where, its dtype whether there is autocast.
    """

    def __init__(self, model: nn.Module, task: Task):
        self._compiled: Any = torch.compile(model.train(), fullgraph=True, dynamic=False)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.05, fused=True)
        self._autocast = task.dtype == "bf16"
        self._device = task.device
        self._targets = torch.arange(task.batch_size, device=task.device) % model.get_parameter("head.bias").numel()

    def __call__(self, images: Tensor) -> Tensor:
        """Take one step and return the logits (N, classes) from before it."""
        with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self._compiled(images)
            loss = nn.functional.cross_entropy(logits, self._targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return logits.detach()

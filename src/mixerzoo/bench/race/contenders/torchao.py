"""timm's ``MlpMixer`` quantised by torchao and compiled."""

# mypy: disable-error-code="import-untyped,import-not-found"
# (the package has no types, and need not be installed)

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.bench.race.models import timm_model
from mixerzoo.bench.race.terms import Built, Contender, Task, no_fp8


def _build(task: Task) -> Built:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    model = timm_model(task).to(torch.bfloat16)
    if task.dtype == "fp8":
        quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    else:
        quantize_(model, Int8DynamicActivationInt8WeightConfig())

    def forward(images: Tensor) -> Tensor:
        return model(images.to(torch.bfloat16)).float()

    if task.device == "cuda":
        return Built(torch.compile(forward, dynamic=False, mode="max-autotune"), 'torch.compile(mode="max-autotune")')
    import torch._inductor.config as inductor

    inductor.freezing = True  # this process runs nothing else
    return Built(torch.compile(forward, dynamic=False), "torch.compile, frozen")


CONTENDERS = (
    Contender(
        "torchao", 40, {"cpu": ("int8",), "cuda": ("int8", "fp8")}, _build, packages=("torchao",), obstacle=no_fp8
    ),
)

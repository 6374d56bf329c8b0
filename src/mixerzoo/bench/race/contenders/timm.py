"""timm's ``MlpMixer``: eager, and compiled the way that suits the device best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixerzoo.bench.race.models import timm_model
from mixerzoo.bench.race.terms import Built, Contender, Device, Dtype, Task

_OFFERS: dict[Device, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16")}


def _forward(task: Task) -> Callable[[Tensor], Tensor]:
    """The model in the task's dtype; images are cast inside, where a compiler can fuse that."""
    dtype = torch.float32 if task.dtype == "fp32" else torch.bfloat16
    model = timm_model(task).to(dtype)

    def forward(images: Tensor) -> Tensor:
        return model(images.to(dtype)).float()

    return forward


def _build_eager(task: Task) -> Built:
    return Built(_forward(task), "eager")


def _build_compiled(task: Task) -> Built:
    if task.device == "cuda":
        call = torch.compile(_forward(task), fullgraph=True, dynamic=False, mode="max-autotune")
        return Built(call, 'torch.compile(mode="max-autotune")')
    import torch._inductor.config as inductor

    inductor.freezing = True  # this process runs nothing else
    return Built(torch.compile(_forward(task), fullgraph=True, dynamic=False), "torch.compile, frozen")


def _build_latency(task: Task) -> Built:
    call = torch.compile(_forward(task), fullgraph=True, dynamic=False, mode="reduce-overhead")
    return Built(call, 'torch.compile(mode="reduce-overhead")')


def _trainable(task: Task) -> nn.Module:
    return timm_model(task)


CONTENDERS = (
    Contender("timm", 10, _OFFERS, _build_eager),
    Contender("timm-compile", 11, _OFFERS, _build_compiled, trainable=_trainable),
    Contender("timm-compile-latency", 12, {"cuda": _OFFERS["cuda"]}, _build_latency),
)

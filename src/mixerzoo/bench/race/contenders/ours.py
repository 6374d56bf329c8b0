"""Ours: :func:`mixerzoo.engine.optimize`, and the same engine held to its compiled program.

The second shows what our own kernels add to what PyTorch's compiler makes of our model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from mixerzoo.bench.race.models import calibration_images, our_model
from mixerzoo.bench.race.terms import OURS, Built, Contender, Device, Dtype, Task, no_fp8
from mixerzoo.engine.program import make_request
from mixerzoo.engine.programs import PROGRAMS

_QUANTISED: dict[Dtype, Literal["int8", "fp8"]] = {"int8": "int8", "fp8": "fp8"}
_OFFERS: dict[Device, tuple[Dtype, ...]] = {
    "cpu": ("fp32", "bf16", "int8"),
    "cuda": ("fp32", "bf16", "int8", "fp8"),
}


def _build(program: Literal["auto", "compiled"]) -> Callable[[Task], Built]:
    def build(task: Task) -> Built:
        from mixerzoo.engine import optimize

        model, quantize = our_model(task), _QUANTISED.get(task.dtype)
        dtype = torch.float32 if task.dtype == "fp32" else torch.bfloat16
        request = make_request(model.config, task.device, dtype, quantize, True, task.batch_size)
        # On a card without a record the automatic choice leaves our kernels out; a race checks what they compute.
        ours = task.device == "cuda" and program == "auto" and PROGRAMS["fused"].obstacle(request) is None
        fast = optimize(
            model,
            dtype=dtype,
            quantize=quantize,
            max_batch_size=task.batch_size,
            device=task.device,
            calibration=torch.cat(calibration_images(task)) if quantize == "int8" else None,
            program="fused" if ours else program,
        )
        return Built(fast, str(fast.report()))

    return build


def _trainable(task: Task) -> nn.Module:
    model = our_model(task)
    model.set_backend("auto")
    return model


CONTENDERS = (
    Contender(OURS, 0, _OFFERS, _build("auto"), obstacle=no_fp8, trainable=_trainable),
    Contender(f"{OURS}-compile", 1, dict.fromkeys(_OFFERS, ("fp32", "bf16")), _build("compiled")),
)

"""The folded model with torchao's int8 products in channel mixing: where our own int8 does not run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mixerzoo.engine.program import Program, Request
from mixerzoo.engine.programs import compiled


class TorchaoRunner(compiled.CompiledRunner):
    """Quantises the channel-mixing weights as it starts; the rest runs in ``request.dtype``.

    Args:
        tensors: What :data:`PROGRAM` packed.
        request: What is to be run.
        code: None: what it compiles cannot be kept.
    """

    def __init__(self, tensors: Mapping[str, Tensor], request: Request, code: Path | None = None):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        names = [name for name in tensors if name.endswith((".w3", ".w4"))]
        layers = [_linear(tensors[name]) for name in names]
        quantize_(nn.ModuleList(layers), Int8DynamicActivationInt8WeightConfig())
        quantised = {name: layer.weight for name, layer in zip(names, layers, strict=True)}
        super().__init__({**tensors, **quantised}, request, code)
        self.notes = (
            "Channel mixing in torchao's int8, weights with a scale for each output, activations with a scale for "
            "each row computed as they appear, so calibration is not needed.",
            *self.notes,
        )


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _obstacle(request: Request) -> str | None:
    if request.quantize != "int8":
        return "it has int8 products only"
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed (pip install 'mixerzoo[quant]')"
    return None


PROGRAM = Program(
    name="torchao",
    rank=50,
    obstacle=_obstacle,
    pack=compiled.PROGRAM.pack,
    start=TorchaoRunner,
)

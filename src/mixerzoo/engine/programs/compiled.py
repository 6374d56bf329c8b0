"""The folded model in plain PyTorch, compiled by ``torch.compile``: on every device and in every dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mixerzoo.engine.folding import FoldedLayer, FoldedMixer, gelu, normalise
from mixerzoo.engine.program import Program, Request
from mixerzoo.engine.tensors import layers_of, named


def _pack(folded: FoldedMixer, request: Request, calibration: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG001
    return {name: tensor.to(request.device, request.dtype) for name, tensor in named(folded).items()}


class FoldedForward(nn.Module):
    """The folded model as a module whose tensors the compiler may take for constants.

    Args:
        tensors: See :func:`mixerzoo.engine.tensors.named`.
        request: What is to be run.
    """

    def __init__(self, tensors: Mapping[str, Tensor], request: Request):
        super().__init__()
        self.config = request.config
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name.replace(".", "_")) for name in self.names}

    def stream(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        tensors, config = self._tensors(), self.config
        weight = tensors["stem.weight"]
        kernel = weight.view(-1, config.in_chans, config.patch_size, config.patch_size)
        patches = F.conv2d(images.to(weight.dtype), kernel, tensors["stem.bias"], stride=config.patch_size)
        x_NSC = patches.flatten(2).transpose(1, 2)
        for layer in layers_of(tensors, config.depth, FoldedLayer):
            y_NCS = (normalise(x_NSC, config.norm_eps) * layer.gamma1 + layer.beta1).transpose(1, 2)
            mixed_NCS = F.linear(gelu(F.linear(y_NCS, layer.w1, layer.b1), config), layer.w2)
            x_NSC = x_NSC + mixed_NCS.transpose(1, 2)
            hidden_NSD = gelu(F.linear(normalise(x_NSC, config.norm_eps), layer.w3, layer.b3), config)
            x_NSC = x_NSC + F.linear(hidden_NSD, layer.w4, layer.b4)
        return x_NSC

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        tensors = self._tensors()
        features = normalise(self.stream(images), self.config.norm_eps)
        if self.config.global_pool == "avg":
            features = features.mean(1)
        if "head.weight" in tensors:
            return F.linear(features, tensors["head.weight"], tensors["head.bias"])
        return features * tensors["norm.weight"] + tensors["norm.bias"]


class CompiledRunner:
    """Runs the folded model; compiles once for single images and once for all larger batches.

    Args:
        tensors: What :data:`PROGRAM` packed.
        request: What is to be run.
    """

    def __init__(self, tensors: Mapping[str, Tensor], request: Request):
        self._model = FoldedForward(tensors, request).eval()
        self._compiled = (
            torch.compile(self._model, options=_options(request.device)) if request.compile else self._model
        )
        self._precise = request.precise
        how = "compiled once for one image and once for more" if request.compile else "run eagerly (compile=False)"
        dtype = str(request.dtype).removeprefix("torch.")
        self.notes: tuple[str, ...] = (f"The folded model in plain PyTorch, {dtype}, {how}.",)

    def stream(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`; not compiled."""
        return self._model.stream(images).to(self._precise)

    def logits(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        if not images.is_inference():  # the compiler tells both kinds of tensor apart and would compile twice
            images = images.clone()
        if images.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(images, 0)
        return self._compiled(images).to(self._precise)


def _options(device: torch.device) -> dict[str, Any]:
    """On CPUs constants are frozen, so that oneDNN packs the weights once."""
    return {"freezing": True} if device.type == "cpu" else {}


def _obstacle(request: Request) -> str | None:
    if request.quantize is not None:
        return "it has no quantised products"
    return None


PROGRAM = Program(
    name="compiled",
    rank=90,
    obstacle=_obstacle,
    reservation=lambda request: None,  # noqa: ARG005
    pack=_pack,
    start=CompiledRunner,
)

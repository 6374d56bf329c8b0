"""What surrounds the layers when they run on packed tensors: the stem as one product, the final LayerNorm and the head.

Legend: N images, S tokens, C channels, P numbers of a patch, PP the same padded to rows of whole 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.engine.folding import FoldedMixer, normalise
from mixerzoo.engine.graphs import Graphs
from mixerzoo.engine.program import Request
from mixerzoo.engine.tensors import classify, layers_of, tail

_ALIGNED = 8  # 16 bytes of 2-byte numbers: what the library's fast products ask of every row


def pack_ends(folded: FoldedMixer, request: Request) -> dict[str, Tensor]:
    """The stem in ``request.dtype``, its rows (PP) padded with zeros; final LayerNorm and head in full precision."""
    weight = F.pad(folded.stem_weight, (0, -folded.stem_weight.shape[1] % _ALIGNED))
    stem = {"stem.weight": weight, "stem.bias": folded.stem_bias}
    tensors = {name: tensor.to(request.device, request.dtype) for name, tensor in stem.items()}
    return tensors | {name: tensor.to(request.device, request.precise) for name, tensor in tail(folded).items()}


def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies: what needed no conversion would be the model's own parameters, and change with them."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


class PackedMixer:
    """A whole Mixer of which a program brings the layers.

    Args:
        tensors: Those of :func:`pack_ends`, and every layer's.
        request: What is to be run.
        kind: The layers' named tuple.
        mix: One layer: tokens (N, S, C), contiguous, in ``request.dtype``, to the same; it may overwrite its input.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], request: Request, kind: type[Any], mix: Callable[[Tensor, Any], Tensor]
    ):
        self._tensors = tensors
        self._config, self._precise = request.config, request.precise
        self._layers = layers_of(tensors, request.config.depth, kind)
        self._mix = mix

    def stream(self, images: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> tokens behind the last layer (N, S, C), both of ``request.precise``."""
        return self._tokens(images).to(self._precise)

    def logits(self, images: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> what the model's ``forward`` returns, of ``request.precise``."""
        features = normalise(self._tokens(images), self._config.norm_eps)
        pool = self._config.global_pool == "avg"
        features = features.mean(1, dtype=self._precise) if pool else features.to(self._precise)
        return classify(features, self._tensors)

    def _tokens(self, images: Tensor) -> Tensor:
        x_NSC = F.linear(self._patches(images), self._tensors["stem.weight"], self._tensors["stem.bias"])
        for layer in self._layers:
            x_NSC = self._mix(x_NSC, layer)
        return x_NSC

    def _patches(self, images: Tensor) -> Tensor:
        """Cut images into patches (N, S, PP) of the stem's dtype, in one pass."""
        config, like = self._config, self._tensors["stem.weight"]
        (rows, columns), side, count = config.grid_size, config.patch_size, images.shape[0]
        whole = images[:, :, : rows * side, : columns * side]
        cut = whole.reshape(count, config.in_chans, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        width = config.in_chans * side * side
        make = torch.empty if width == like.shape[1] else torch.zeros
        patches = make(count, rows * columns, like.shape[1], dtype=like.dtype, device=like.device)
        patches[..., :width].view(cut.shape).copy_(cut)
        return patches


class PackedRunner:
    """Runs a packed Mixer, on CUDA as captured graphs.

    Args:
        model: What to run.
        request: What was asked for.
        notes: How the layers run, for the report.

    Attributes:
        code: None: Triton's cache folder keeps what is compiled.
    """

    code: Path | None = None

    def __init__(self, model: PackedMixer, request: Request, *notes: str):
        self._model = model
        self._graphs = Graphs(request.device, request.max_batch_size, self._note)
        self.notes = notes + self._graphs.notes

    def _note(self, note: str) -> None:
        self.notes += (note,)

    def stream(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        return self._graphs(self._model.stream, images)

    def logits(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        return self._graphs(self._model.logits, images)

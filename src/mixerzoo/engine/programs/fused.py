"""The fused kernels on weights that were packed once, as CUDA graphs.

A layer is five launches: row statistics, token mixing, row statistics, and two products with all of channel mixing in
their epilogues. Nothing but the residual stream and one hidden activation goes through memory. On a card on which
cuBLASLt's channel mixing was recorded as the fastest, the products are cuBLASLt's, behind a normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixerzoo.engine.folding import FoldedLayer, FoldedMixer
from mixerzoo.engine.packed import PackedMixer, PackedRunner, own, pack_ends
from mixerzoo.engine.program import Program, Request
from mixerzoo.engine.tensors import named_layer
from mixerzoo.ops.backends import cublaslt, triton
from mixerzoo.ops.cards import problem_key, read_cards
from mixerzoo.ops.choice import with_precision
from mixerzoo.ops.problem import OPERATIONS, Problem


class FusedLayer(NamedTuple):
    """One layer: the fields of ``TokenWeights`` and ``ChannelWeights`` in :mod:`mixerzoo.kernels.inference`."""

    gamma1: Tensor
    beta1: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    w3: Tensor
    total3: Tensor
    b3: Tensor
    w4: Tensor
    b4: Tensor


def pack_tokens(layer: FoldedLayer, request: Request) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Token mixing's tensors in ``request.dtype``, padded as the kernel reads them."""
    from mixerzoo.kernels.token_mlp import pack

    gamma1, beta1, w1, b1, w2 = (tensor.to(request.device, request.dtype) for tensor in layer[:5])
    return (gamma1, beta1, *pack(w1, b1, w2))


def _pack(folded: FoldedMixer, request: Request) -> dict[str, Tensor]:
    tensors = pack_ends(folded, request)
    for i, layer in enumerate(folded.layers):
        w3, b3, w4, b4 = (t.to(request.device, request.dtype) for t in layer[5:])
        total3 = w3.sum(1, dtype=torch.float64).float()
        tensors |= named_layer(i, FusedLayer(*pack_tokens(layer, request), w3, total3, b3, w4, b4))
    return own(tensors)


def _start(tensors: Mapping[str, Tensor], request: Request, code: Path | None) -> PackedRunner:  # noqa: ARG001
    from mixerzoo.kernels.inference import (
        ChannelWeights,
        TokenWeights,
        mix_channels,
        mix_channels_cublaslt,
        mix_tokens,
    )

    eps, act = request.config.norm_eps, request.config.act

    def mix(x_NSC: Tensor, layer: FusedLayer) -> Tensor:
        mix_tokens(x_NSC, TokenWeights(*layer[:5]), eps, act)
        mix_channels(x_NSC, ChannelWeights(*layer[5:]), eps, act)
        return x_NSC

    def mix_by_library(x_NSC: Tensor, layer: FusedLayer) -> Tensor:
        mix_tokens(x_NSC, TokenWeights(*layer[:5]), eps, act, layer.b4)
        mix_channels_cublaslt(x_NSC, ChannelWeights(*layer[5:]), eps)
        return x_NSC

    library, dtype = library_is_faster(request), str(request.dtype).removeprefix("torch.")
    whose = "cuBLASLt's" if library else "our"
    note = f"Token mixing in one kernel, channel mixing in the epilogues of {whose} two products, {dtype}."
    return PackedRunner(PackedMixer(tensors, request, FusedLayer, mix_by_library if library else mix), request, note)


def problems(request: Request) -> list[Problem]:
    """Both operations of a layer as the backends know them."""
    config = request.config
    sizes = {
        "token_mlp": (config.num_tokens, config.embed_dim, config.tokens_mlp_dim),
        "channel_mlp": (0, config.embed_dim, config.channels_mlp_dim),
    }
    return [
        with_precision(Problem(op, request.device, request.dtype, *sizes[op], config.act, training=False))
        for op in OPERATIONS
    ]


def library_is_faster(request: Request) -> bool:
    """Whether cuBLASLt's channel mixing can run and was the fastest on such a card."""
    _, channels = problems(request)
    if cublaslt.BACKEND.obstacle(channels) is not None:
        return False
    record = read_cards().get(torch.cuda.get_device_name(request.device))
    return record is not None and record.fastest.get(problem_key(channels)) == cublaslt.BACKEND.name


def kernel_obstacle(request: Request) -> str | None:
    """Why the kernels cannot run a request, quantised products aside."""
    if not request.compile:
        return "its kernels are compiled when they first run, and compile=False forbids that"
    return next(filter(None, map(triton.BACKEND.obstacle, problems(request))), None)


def kernel_reservation(request: Request, program: str) -> str | None:
    """Why a card's automatic choice should not take the kernels: the rule of :mod:`mixerzoo.ops.choice`."""
    reservation = next(filter(None, map(triton.BACKEND.reservation, problems(request))), None)
    if reservation is not None:
        return reservation
    card, dtype = torch.cuda.get_device_name(request.device), str(request.dtype).removeprefix("torch.")
    record = read_cards().get(card)
    if record is None or any(dtype not in record.passed.get(op, ()) for op in OPERATIONS):
        return f"no run of the GPU suite in {dtype} is recorded for {card}; program={program!r} uses it"
    return None


def _obstacle(request: Request) -> str | None:
    if request.quantize is not None:
        return "it has no quantised products"
    return kernel_obstacle(request)


PROGRAM = Program(
    name="fused",
    rank=10,
    obstacle=_obstacle,
    reservation=lambda request: kernel_reservation(request, "fused"),
    pack=_pack,
    start=_start,
)

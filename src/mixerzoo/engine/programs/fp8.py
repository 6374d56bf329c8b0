"""Channel mixing in FP8, with the quantisation inside our kernels; token mixing and the rest as in ``fused``.

A layer is five launches again: row statistics, token mixing, normalisation into FP8, and two products, of which the
first writes FP8. Nothing passes through memory in more than one byte but the residual stream, and nothing is quantised
in a pass of its own. :mod:`mixerzoo.kernels.fp8_format` says how numbers are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mixerzoo.engine.folding import FoldedMixer
from mixerzoo.engine.fp8_reference import Fp8Layer, pack_channels
from mixerzoo.engine.packed import PackedMixer, PackedRunner, own, pack_ends
from mixerzoo.engine.program import Program, Request
from mixerzoo.engine.programs.fused import kernel_obstacle, kernel_reservation, pack_tokens
from mixerzoo.engine.tensors import named_layer

_ALIGNED = 16  # bytes that are loaded at once


def _pack(folded: FoldedMixer, request: Request) -> dict[str, Tensor]:
    tensors = pack_ends(folded, request)
    for i, layer in enumerate(folded.layers):
        w3, b3, w4, b4 = (tensor.to(request.device, torch.float32) for tensor in layer[5:])
        tensors |= named_layer(i, Fp8Layer(*pack_tokens(layer, request), *pack_channels(w3, b3, w4, b4)))
    return own(tensors)


def _start(tensors: Mapping[str, Tensor], request: Request, code: Path | None) -> PackedRunner:  # noqa: ARG001
    from mixerzoo.kernels.inference import Fp8ChannelWeights, TokenWeights, mix_channels_fp8, mix_tokens

    eps, act = request.config.norm_eps, request.config.act

    def mix(x_NSC: Tensor, layer: Fp8Layer) -> Tensor:
        mix_tokens(x_NSC, TokenWeights(*layer[:5]), eps, act)
        mix_channels_fp8(x_NSC, Fp8ChannelWeights(*layer[5:]), eps, act)
        return x_NSC

    dtype = str(request.dtype).removeprefix("torch.")
    notes = (
        "Channel mixing in float8_e4m3fn: weights with a scale for each output, activations with scales that follow "
        "from LayerNorm's bound, applied in the kernels around the products.",
        f"Token mixing in one kernel, {dtype}.",
    )
    return PackedRunner(PackedMixer(tensors, request, Fp8Layer, mix), request, *notes)


def _obstacle(request: Request) -> str | None:
    if request.quantize != "fp8":
        return "quantize='fp8' asks for it"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return f"what is not quantised runs in bfloat16 or float16, not in {str(request.dtype).removeprefix('torch.')}"
    sizes = {"embed_dim": request.config.embed_dim, "channels_mlp_dim": request.config.channels_mlp_dim}
    for name, size in sizes.items():
        if size % _ALIGNED:
            return f"its products take widths that are multiples of {_ALIGNED}, and {name} is {size}"
    if request.device.type == "cuda" and torch.cuda.get_device_capability(request.device) < (8, 9):
        return "matrix units take FP8 from compute capability 8.9 on (Ada, Hopper, Blackwell)"
    return kernel_obstacle(request)


PROGRAM = Program(
    name="fp8",
    rank=5,
    obstacle=_obstacle,
    reservation=lambda request: kernel_reservation(request, "fp8"),
    pack=_pack,
    start=_start,
)

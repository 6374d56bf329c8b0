"""Weights as operands of ``tile.h``, for both number formats. All pure functions of tensors on the CPU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Format = Literal["bf16", "int8"]
ROWS, COLUMNS, BLOCK = 14, 32, 16
GELU_FLOOR = 0.171
"""What ``int8.h`` adds to the output of GELU before it is quantised."""

LARGEST = 127
LONGEST = 2**16
"""Products of bytes of which a 32-bit sum can hold that many whatever they are."""


def pack(
    weight: Tensor, bias: Tensor | None, number: Format, kind: Literal["stem", "w1", "w2", "w3", "w4"]
) -> dict[str, Tensor]:
    """One weight matrix (outputs, inputs) as ``words``, ``bias``, ``scale`` and ``offset`` (see ``model.h``).

    Token mixing multiplies weights from the left, everything else from the right. All that belongs to an output is
    padded by a panel, so that whole vectors may be read.

    Args:
        weight: (outputs, inputs), on the CPU.
        bias: (outputs,); None for 0.
        number: Number format of the products.
        kind: Which weight of the Mixer.
    """
    weight = weight.double()
    shift = weight.new_zeros(len(weight)) if bias is None else bias.double()
    scale = offset = None
    if number == "int8":
        scale = (weight.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny).float()
        weight = (weight / scale.double()[:, None]).round()
        sums = weight.sum(1)
        behind_gelu = kind in ("w2", "w4")
        offset = (torch.zeros_like(sums) if behind_gelu else -128 * sums).to(torch.int32)
        if behind_gelu:
            shift = shift - GELU_FLOOR * sums * scale.double()
    words = (_as_rows if kind in ("w1", "w2") else _as_columns)(weight, number)
    packed = {"words": words, "bias": shift.float(), "scale": scale, "offset": offset}
    return {
        name: tensor if name == "words" else torch.nn.functional.pad(tensor, (0, COLUMNS))
        for name, tensor in packed.items()
        if tensor is not None
    }


def _values(number: Format) -> tuple[torch.dtype, int]:
    """Type of a value, and how many make a word."""
    return (torch.bfloat16, 2) if number == "bf16" else (torch.int8, 4)


def _as_rows(weight: Tensor, number: Format) -> Tensor:
    """(M, K) as [M / 14][K / block][14][block]."""
    dtype, per_word = _values(number)
    block = BLOCK * per_word
    (rows, columns) = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % block, 0, -rows % ROWS))
    return padded.view(-1, ROWS, padded.shape[1] // block, block).transpose(1, 2).to(dtype).contiguous()


def _as_columns(weight: Tensor, number: Format) -> Tensor:
    """(N, K) as [N / 32][K / values of a word][32][values of a word]; N is a multiple of 32."""
    dtype, per_word = _values(number)
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % per_word))
    return padded.view(len(weight) // COLUMNS, COLUMNS, -1, per_word).transpose(1, 2).to(dtype).contiguous()

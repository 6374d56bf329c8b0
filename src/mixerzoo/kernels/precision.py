"""Whether float32 products may be TF32: the user's choice, read where PyTorch keeps it."""

from __future__ import annotations

import torch


def tf32_allowed() -> bool:
    """Whether the user allowed TF32, by whichever of PyTorch's three ways.

    ``fp32_precision`` follows ``set_float32_matmul_precision`` and ``allow_tf32``; their own getters raise once the
    newer way was used.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"

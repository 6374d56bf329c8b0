"""Channel mixing: ``x + keep (gelu(LayerNorm(x) W1^T + b1) W2^T + b2)``, the same MLP for every token.

Source: Tolstikhin et al. 2021 (arXiv 2105.01601), equation 1, second line (its W3 and W4 are W1 and W2 here).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.config import Gelu
from mixerzoo.ops.problem import Branch


def reference(branch: Branch, eps: float, act: Gelu) -> Tensor:
    """The definition that every backend is measured against, in plain PyTorch and any dtype.

    Args:
        branch: Tensors, of one dtype (``keep`` of any).
        eps: LayerNorm's.
        act: GELU flavour.

    Returns:
        (N, S, C) in the dtype of ``branch.x``.
    """
    x, scale, shift, w1, b1, w2, b2, keep = branch
    y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
    hidden = F.gelu(F.linear(y, w1, b1), approximate="tanh" if act == "tanh" else "none")
    mixed = F.linear(hidden, w2, b2)
    return x + (mixed if keep is None else keep[:, None, None].to(mixed.dtype) * mixed)

"""What is to be computed and what computing it can look like: the terms that operations and backends share.

Legend: N images, S tokens, C channels, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mixerzoo.config import Gelu

Operation = Literal["token_mlp", "channel_mlp"]
OPERATIONS: tuple[Operation, ...] = ("token_mlp", "channel_mlp")


@dataclass(frozen=True)
class Problem:
    """One branch on one device: all that the choice of a backend depends on; never the number of images.

    Attributes:
        op: Which branch.
        device: Where the tensors are.
        dtype: Type in which the products run.
        tokens: S; 0 for channel mixing, where it does not matter.
        channels: C.
        hidden: H.
        act: GELU flavour.
        training: Whether gradients are wanted.
        tf32: Whether float32 products may use TF32 (see :mod:`mixerzoo.kernels.precision`).
    """

    op: Operation
    device: torch.device
    dtype: torch.dtype
    tokens: int
    channels: int
    hidden: int
    act: Gelu
    training: bool
    tf32: bool = False


class Branch(NamedTuple):
    """The tensors of one branch.

    Attributes:
        x: Tokens (N, S, C), contiguous.
        norm_weight: LayerNorm's scale (C,).
        norm_bias: LayerNorm's shift (C,).
        w1: First weight: (H, S) for token mixing, (H, C) for channel mixing. Products run in its dtype.
        b1: First bias (H,).
        w2: Second weight: (S, H) or (C, H).
        b2: Second bias: (S,) or (C,).
        keep: Factor of each image's branch (N,), float32: stochastic depth. None for 1.
    """

    x: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    keep: Tensor | None


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass, beside its inputs.

    Attributes:
        mean: Mean of every token (N, S), float32 (float64 for float64 tokens).
        rstd: Reciprocal standard deviation of every token, likewise.
        hidden: What GELU is applied to (N, S, H), or empty: then it is computed again.
    """

    mean: Tensor
    rstd: Tensor
    hidden: Tensor


Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of ``x``, ``norm_weight``, ``norm_bias``, ``w1``, ``b1``, ``w2`` and ``b2``."""


@dataclass(frozen=True)
class Implementation:
    """One operation by one backend.

    Attributes:
        forward: From the branch, eps, GELU flavour and whether a backward pass will follow, to ``x + keep branch(x)``
            of the shape and dtype of ``x``, and what to save.
        backward: From the gradient of that result (contiguous), the branch, what was saved, eps and flavour, to the
            gradients; the caller brings them to the dtypes of the inputs.
        saves_hidden: Whether ``Saved.hidden`` is filled when a backward pass will follow.
    """

    forward: Callable[[Branch, float, Gelu, bool], tuple[Tensor, Saved]]
    backward: Callable[[Tensor, Branch, Saved, float, Gelu], Gradients]
    saves_hidden: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to compute the operations; a file in :mod:`mixerzoo.ops.backends` defines one as ``BACKEND``.

    Attributes:
        name: What users call it.
        rank: Order in which the automatic choice tries backends, lowest first.
        traceable: Whether ``torch.compile`` may look inside (plain PyTorch) or must take it as one operation.
        obstacle: Why it cannot compute a problem, as a clause; None where it can.
        reservation: Why the automatic choice should not take it although it could; None where it should.
        implementations: The operations it has.
    """

    name: str
    rank: int
    traceable: bool
    obstacle: Callable[[Problem], str | None]
    reservation: Callable[[Problem], str | None]
    implementations: dict[Operation, Implementation]

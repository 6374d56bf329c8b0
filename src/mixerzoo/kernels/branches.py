"""Both residual branches of a Mixer layer, forward and backward, from the kernels of this folder.

Legend: N images, S tokens, C channels, H hidden width. Everything is deterministic: each program owns what it writes,
and partial sums are added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mixerzoo.config import Gelu
from mixerzoo.kernels import layer_norm, linear, linear_tiles, token_mlp
from mixerzoo.kernels.launch import Card, card_of
from mixerzoo.kernels.token_mlp_backward import describe_input, describe_weights
from mixerzoo.kernels.token_tiles import (
    FORWARD,
    INPUT,
    WEIGHTS,
    Tile,
    padded_tokens,
)


def token_tiles(
    card: Card, shape: tuple[int, int, int], element_size: int, act: Gelu
) -> tuple[Tile, Tile, Tile] | None:
    """Tiles of the forward, input-gradient and weight-gradient kernels; None where one of them does not fit.

    Args:
        card: Where they are to run.
        shape: Tokens, channels, hidden width.
        element_size: Bytes of a weight.
        act: GELU flavour.
    """
    forward, to_input, to_weights = (
        table.choose(card, shape, element_size, act) for table in (FORWARD, INPUT, WEIGHTS)
    )
    return (forward, to_input, to_weights) if forward and to_input and to_weights else None


def token_mlp_forward(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    keep: Tensor | None,
    eps: float,
    act: Gelu,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x + keep (W2 gelu(W1 LayerNorm(x) + b1) + b2)``, mixing tokens.

    Args:
        x: (N, S, C), contiguous.
        norm: LayerNorm's scale and shift (C,).
        weights: W1 (H, S), b1 (H,), W2 (S, H), b2 (S,), of the dtype in which the products run.
        keep: (N,), float32; None for 1.
        eps: LayerNorm's.
        act: GELU flavour.
        tile: Cut the work like this instead of by the table.

    Returns:
        The result as ``x``, and mean and reciprocal standard deviation of the tokens (N, S) in float32.
    """
    card = card_of(x.device)
    w1, b1, w2, b2 = weights
    if tile is None:
        tiles = token_tiles(card, (*x.shape[1:], w1.shape[0]), w1.element_size(), act)
        assert tiles is not None
        tile = tiles[0]
    stats = layer_norm.row_stats(x, *norm, eps)
    out = torch.empty_like(x)
    packed = token_mlp.pack(w1, b1, w2)
    token_mlp.describe_forward(
        x, stats, norm, packed, b2, keep, out, act, tile, programs_at_once(card, tile, x.shape[1])
    )()
    return out, *stats


def token_mlp_backward(
    g: Tensor,
    x: Tensor,
    stats: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    keep: Tensor | None,
    act: Gelu,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`token_mlp_forward`'s ``x``, ``norm`` and ``weights``; those of parameters in float32.

    Args:
        g: Gradient of the result (N, S, C), contiguous.
        x: As in the forward pass.
        stats: As the forward pass returned them.
        norm: As in the forward pass.
        weights: As in the forward pass.
        keep: As in the forward pass.
        act: As in the forward pass.
    """
    card = card_of(x.device)
    w1, b1, w2, _ = weights
    images, tokens, channels = x.shape
    hidden = w1.shape[0]
    tiles = token_tiles(card, (tokens, channels, hidden), w1.element_size(), act)
    assert tiles is not None
    _, to_input, to_weights = tiles
    packed = token_mlp.pack(w1, b1, w2)
    shared = (x, stats, norm, g, keep, packed)

    dy = torch.empty_like(x, dtype=w1.dtype)
    db2 = _slots(x, images * triton.cdiv(channels, to_input.channels), padded_tokens(tokens))
    describe_input(*shared, dy, db2, act, to_input, programs_at_once(card, to_input, tokens))()

    hidden_padded, tokens_padded = packed[0].shape
    splits = weight_splits(card, to_weights, (images, tokens, channels), hidden_padded)
    dw1 = _slots(x, splits, hidden_padded, tokens_padded)
    dw2 = torch.empty_like(dw1)
    db1 = _slots(x, splits, hidden_padded)
    describe_weights(*shared, dw1, db1, act, to_weights)()
    describe_weights(*shared, dw2, None, act, to_weights)()

    dx, dscale, dshift = layer_norm.layer_norm_backward(dy, g, x, *stats, norm[0])
    return (
        dx,
        dscale,
        dshift,
        dw1.sum(0)[:hidden, :tokens],
        db1.sum(0)[:hidden],
        dw2.sum(0)[:hidden, :tokens].t(),
        db2.sum(0)[:tokens],
    )


def programs_at_once(card: Card, tile: Tile, tokens: int) -> int:
    """Programs that run at once: one a multiprocessor where a tile takes most of its registers, two otherwise."""
    return card.multiprocessors * (1 if tile.warps > 4 and padded_tokens(tokens) > 64 else 2)


def weight_splits(card: Card, tile: Tile, shape: tuple[int, int, int], hidden: int) -> int:
    """Shares into which the weight-gradient kernel cuts the (image, channel block) pairs.

    Args:
        card: Where it runs.
        tile: How a program cuts its work.
        shape: Images, tokens, channels.
        hidden: Padded hidden width.
    """
    images, tokens, channels = shape
    pairs = images * triton.cdiv(channels, tile.channels)
    return min(max(programs_at_once(card, tile, tokens) * tile.hidden // hidden, 1), max(pairs, 1))


def _slots(like: Tensor, *shape: int) -> Tensor:
    """Room for partial sums."""
    return torch.empty(shape, device=like.device, dtype=torch.float32)


def channel_mlp_forward(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    keep: Tensor | None,
    eps: float,
    act: Gelu,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x + keep (gelu(LayerNorm(x) W3 + b3) W4 + b4)``, mixing channels.

    Args:
        x: (N, S, C), contiguous.
        norm: LayerNorm's scale and shift (C,).
        weights: W3 (H, C), b3 (H,), W4 (C, H), b4 (C,), of the dtype in which the products run.
        keep: (N,), float32; None for 1.
        eps: LayerNorm's.
        act: GELU flavour.
        save: Keep what GELU is applied to, for the backward pass.

    Returns:
        The result as ``x``, mean and reciprocal standard deviation of the tokens (N, S) in float32, and what GELU is
        applied to (N, S, H), or an empty tensor.
    """
    w3, b3, w4, b4 = weights
    card, rows, hidden = card_of(x.device), x.numel() // x.shape[-1], w3.shape[0]
    y, mean, rstd = layer_norm.normalise(x, *norm, eps, w3.dtype)
    z = y.new_empty(*x.shape[:-1], hidden)
    u = torch.empty_like(z) if save else None
    tile = linear_tiles.linear_tile(card, rows, hidden, w3.element_size(), linear_tiles.gelu_load(save, act))
    linear.describe_linear_gelu(y, w3, b3, u, z, act, tile)()
    out = torch.empty_like(x)
    tile = linear_tiles.linear_tile(card, rows, x.shape[-1], w3.element_size(), 1)
    linear.describe_linear_residual(z, w4, b4, x, keep, out, tile)()
    return out, mean, rstd, y.new_empty(0) if u is None else u


def channel_mlp_backward(
    g: Tensor,
    x: Tensor,
    stats: tuple[Tensor, Tensor],
    u: Tensor,
    norm: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    keep: Tensor | None,
    eps: float,
    act: Gelu,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`channel_mlp_forward`'s ``x``, ``norm`` and ``weights``.

    The two products without an epilogue, and the weights' gradients, are the library's.

    Args:
        g: Gradient of the result (N, S, C), contiguous.
        x: As in the forward pass.
        stats: As the forward pass returned them.
        u: As the forward pass returned it.
        norm: As in the forward pass.
        weights: As in the forward pass.
        keep: As in the forward pass.
        eps: As in the forward pass.
        act: As in the forward pass.
    """
    w3, _, w4, _ = weights
    channels, hidden = x.shape[-1], w3.shape[0]
    rows = x.numel() // channels
    y, _, _ = layer_norm.normalise(x, *norm, eps, w3.dtype)
    low = g.to(w3.dtype)
    tile = linear_tiles.linear_tile(card_of(x.device), rows, hidden, w3.element_size(), 2)
    du, z = torch.empty_like(u), torch.empty_like(u)
    sums = _slots(x, triton.cdiv(rows, tile.rows), hidden)
    linear.describe_linear_gradient(low, w4, u, keep, du, z, sums, act, tile)()
    flat = du.view(rows, hidden)
    dy = torch.mm(flat, w3).view_as(x)
    dx, dscale, dshift = layer_norm.layer_norm_backward(dy, g, x, *stats, norm[0])
    per_image = g.sum(1, dtype=torch.float32)
    return (
        dx,
        dscale,
        dshift,
        torch.mm(flat.t(), y.view(rows, channels)),
        sums.sum(0),
        torch.mm(low.view(rows, channels).t(), z.view(rows, hidden)),
        (per_image if keep is None else per_image * keep[:, None]).sum(0),
    )

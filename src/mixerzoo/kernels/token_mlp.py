"""Token mixing in one kernel: ``x + keep (W2 gelu(W1 LayerNorm(x) + b1) + b2)``.

Legend: N images, S tokens, C channels, H hidden width, SP and HP the same padded. Channels are the rows of both
products, as queries are in flash attention: a program owns BC channels of one image, normalises them with the row
statistics once, and walks over the hidden width in chunks of BH,

    Z^T (BC, BH) = gelu(Y^T (BC, S) W1^T (S, BH) + b1)        stays in registers
    O^T (BC, S) += Z^T (BC, BH) W2^T (BH, S)

so that neither LayerNorm's output nor the hidden activations ever reach memory. Programs are persistent: each takes one
(image, channel block) after the other.

Two things in the source serve the compiler. The normalised tokens are carried from one tile to the next by the loop:
only an operand that is loop-carried (or loaded) is read by warp-group MMA from shared memory; another would be reloaded
into registers at every step. And offsets start at ``origin``, a zero that the compiler cannot know: else it computes
them once for all tiles and keeps them in registers that the products need (it then spills).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.kernels.arithmetic import cast, dot, gelu
from mixerzoo.kernels.launch import Launch, dot_precision
from mixerzoo.kernels.token_tiles import Tile, hidden_chunk, padded_tokens, token_parts


@triton.jit
def load_normalised(
    x,  # (N, S, C)
    mean,  # (N, S) float32
    rstd,  # (N, S) float32
    weight,  # (C,)
    bias,  # (C,)
    n,
    c,  # (BC,)
    origin,
    S: tl.constexpr,
    C: tl.constexpr,
    START: tl.constexpr,
    PART: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """LayerNorm of tokens START to START + PART and channels ``c`` of image ``n``: (PART, BC), 0 beyond the tokens."""
    s = origin + START + tl.arange(0, PART)
    inside = (s < S)[:, None] & (c < C)[None, :]
    m = tl.load(mean + n * S + s, mask=s < S, other=0.0)
    inverse = tl.load(rstd + n * S + s, mask=s < S, other=0.0)
    v = tl.load(x + tl.cast(n, tl.int64) * S * C + s[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    y = (v - m[:, None]) * inverse[:, None] * scale[None, :] + shift[None, :]
    return cast(tl.where(inside, y, 0.0), DTYPE)


@triton.jit
def _store(
    out,  # (N, S, C), written
    x,  # (N, S, C)
    b2,  # (S,) or None
    more,  # (C,) or None
    mixed,  # (BC, PART) float32
    kept,  # scalar
    n,
    c,  # (BC,)
    origin,
    S: tl.constexpr,
    C: tl.constexpr,
    START: tl.constexpr,
    PART: tl.constexpr,
):
    s = origin + START + tl.arange(0, PART)
    inside = (s < S)[:, None] & (c < C)[None, :]
    image = tl.cast(n, tl.int64) * S * C
    at = s[:, None] * C + c[None, :]
    v = tl.load(x + image + at, mask=inside, other=0.0).to(tl.float32)
    mixed_t = tl.trans(mixed)
    if b2 is not None:
        mixed_t += tl.load(b2 + s, mask=s < S, other=0.0).to(tl.float32)[:, None]
    total = v + kept * mixed_t
    if more is not None:
        total += tl.load(more + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(out + image + at, cast(total, out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])  # one compilation whatever the batch size
def _token_forward(
    x,  # (N, S, C)
    mean,  # (N, S) float32
    rstd,  # (N, S) float32
    weight,  # (C,)
    bias,  # (C,)
    w1,  # (HP, SP), zeros beyond (H, S)
    b1,  # (HP,)
    w2,  # (SP, HP), zeros beyond (S, H)
    b2,  # (S,) or None
    more,  # (C,) or None
    keep,  # (N,) float32 or None
    out,  # (N, S, C), written
    N,
    S: tl.constexpr,
    C: tl.constexpr,
    HP: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    BC: tl.constexpr,
    BH: tl.constexpr,
    STAGES: tl.constexpr,
    TANH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SP: tl.constexpr = P0 + P1 + P2
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    DTYPE: tl.constexpr = w1.dtype.element_ty
    tiles = N * BLOCKS
    tile = tl.program_id(0)
    n = tile // BLOCKS
    c = (tile % BLOCKS) * BC + tl.arange(0, BC)
    origin = tile >> 30
    y0 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, 0, P0, DTYPE)
    if P1 > 0:
        y1 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0, P1, DTYPE)
    if P2 > 0:
        y2 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0 + P1, P2, DTYPE)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        n = tile // BLOCKS
        c = (tile % BLOCKS) * BC + tl.arange(0, BC)
        origin = tile >> 30
        y0_t = tl.trans(y0)
        o0 = tl.zeros((BC, P0), tl.float32)
        if P1 > 0:
            y1_t = tl.trans(y1)
            o1 = tl.zeros((BC, P1), tl.float32)
        if P2 > 0:
            y2_t = tl.trans(y2)
            o2 = tl.zeros((BC, P2), tl.float32)
        for first in tl.range(0, HP, BH, num_stages=STAGES):
            h = tl.multiple_of(origin, 16) + first + tl.arange(0, BH)
            s0 = tl.arange(0, P0)
            s1 = P0 + tl.arange(0, P1 if P1 > 0 else 1)
            s2 = P0 + P1 + tl.arange(0, P2 if P2 > 0 else 1)
            u = dot(y0_t, tl.load(w1 + h[None, :] * SP + s0[:, None]), tl.zeros((BC, BH), tl.float32), PRECISION)
            if P1 > 0:
                u = dot(y1_t, tl.load(w1 + h[None, :] * SP + s1[:, None]), u, PRECISION)
            if P2 > 0:
                u = dot(y2_t, tl.load(w1 + h[None, :] * SP + s2[:, None]), u, PRECISION)
            z = cast(gelu(u + tl.load(b1 + h).to(tl.float32)[None, :], TANH), DTYPE)
            o0 = dot(z, tl.load(w2 + s0[None, :] * HP + h[:, None]), o0, PRECISION)
            if P1 > 0:
                o1 = dot(z, tl.load(w2 + s1[None, :] * HP + h[:, None]), o1, PRECISION)
            if P2 > 0:
                o2 = dot(z, tl.load(w2 + s2[None, :] * HP + h[:, None]), o2, PRECISION)
        kept = 1.0
        if keep is not None:
            kept = tl.load(keep + n)
        _store(out, x, b2, more, o0, kept, n, c, origin, S, C, 0, P0)
        if P1 > 0:
            _store(out, x, b2, more, o1, kept, n, c, origin, S, C, P0, P1)
        if P2 > 0:
            _store(out, x, b2, more, o2, kept, n, c, origin, S, C, P0 + P1, P2)
        following = tl.minimum(tile + tl.num_programs(0), tiles - 1)
        n = following // BLOCKS
        c = (following % BLOCKS) * BC + tl.arange(0, BC)
        origin = following >> 30
        y0 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, 0, P0, DTYPE)
        if P1 > 0:
            y1 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0, P1, DTYPE)
        if P2 > 0:
            y2 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0 + P1, P2, DTYPE)


def pack(w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad tokens to the parts they are cut into and the hidden width to whole chunks: (HP, SP), (HP,), (SP, HP)."""
    hidden, tokens = w1.shape
    more_tokens, more_hidden = padded_tokens(tokens) - tokens, -hidden % hidden_chunk(hidden)
    return (
        F.pad(w1, (0, more_tokens, 0, more_hidden)),
        F.pad(b1, (0, more_hidden)),
        F.pad(w2, (0, more_hidden, 0, more_tokens)),
    )


def describe_forward(
    x: Tensor,
    stats: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor],
    packed: tuple[Tensor, Tensor, Tensor],
    b2: Tensor | None,
    keep: Tensor | None,
    out: Tensor,
    act: str,
    tile: Tile,
    programs: int,
    more: Tensor | None = None,
) -> Launch:
    """The fused kernel on packed weights.

    Args:
        x: Tokens (N, S, C), contiguous.
        stats: Mean and reciprocal standard deviation of every token (N, S), float32.
        norm: LayerNorm's scale and shift (C,).
        packed: See :func:`pack`.
        b2: Second bias (S,); None for 0.
        keep: Factor of each image's branch (N,), float32; None for 1.
        out: As ``x``, written; it may be ``x``, of which a program reads no more than it writes.
        act: GELU flavour.
        tile: How a program cuts its work.
        programs: Programs at most; each takes one (image, channel block) after the other.
        more: To be added to every token of the result (C,); None for 0.
    """
    images, tokens, channels = x.shape
    w1, b1, w2 = packed
    parts = token_parts(tokens)
    return Launch(
        _token_forward,
        (min(programs, images * triton.cdiv(channels, tile.channels)),),
        {"x": x, "mean": stats[0], "rstd": stats[1], "weight": norm[0], "bias": norm[1]}
        | {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "more": more, "keep": keep, "out": out, "N": images},
        {"S": tokens, "C": channels, "HP": w1.shape[0], "P0": parts[0], "P1": parts[1], "P2": parts[2]}
        | {"BC": tile.channels, "BH": tile.hidden, "STAGES": tile.stages}
        | {"TANH": act == "tanh", "PRECISION": dot_precision(w1.dtype)},
        num_warps=tile.warps,
    )

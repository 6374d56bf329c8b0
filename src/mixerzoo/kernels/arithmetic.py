"""What the kernels compute with: GELU and its derivative, and products and rounding that hold when interpreted too.

Triton's interpreter multiplies the raw bits of bfloat16 operands, truncates where a card rounds to nearest even, and
rounds ties of FP8 upwards; :func:`dot` and :func:`cast` undo all that there and are the plain operations on a card.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels are interpreted on the CPU (``TRITON_INTERPRET=1`` when Triton was imported)."""


@triton.jit
def gelu(u, TANH: tl.constexpr):
    """GELU of float32 values; the tanh flavour through 0.5 (1 + tanh v) = sigmoid(2 v) and powers of two.

    2 sqrt(2 / pi) log2(e) = 2.3022..., and 0.044715 times that: factored so, it takes a third fewer instructions.
    """
    if TANH:
        return u / (1.0 + tl.exp2(u * (-2.302208198144325 - 0.10294323958002303 * (u * u))))
    return 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))


@triton.jit
def gelu_gradient(u, TANH: tl.constexpr):
    """d gelu / d u of float32 values; constants as in :func:`gelu`, and 1.5957... = 2 sqrt(2 / pi)."""
    if TANH:
        square = u * u
        s = 1.0 / (1.0 + tl.exp2(u * (-2.302208198144325 - 0.10294323958002303 * square)))
        return s + (s - s * s) * (u * (1.5957691216057308 + 0.21406444881780076 * square))
    return 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32; ``PRECISION`` says whether float32 operands may become TF32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Float32 values rounded to ``dtype``, to nearest even; to FP8 also cut off at its largest number."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        x = tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    if INTERPRETED and dtype == tl.float8e4nv:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) << 20
        denormal = (x + 24576.0) - 24576.0  # float32 has steps of 2^-9 there, as FP8 has below 2^-6
        x = tl.where(tl.abs(x) < 0.015625, denormal, rounded.to(tl.float32, bitcast=True))
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(dtype)

"""Branches with random tensors, and how their results are judged."""

import torch

from mixerzoo.ops import channel_mlp, token_mlp
from mixerzoo.ops.operation import run
from mixerzoo.ops.problem import Branch

REFERENCE = {"token_mlp": token_mlp.reference, "channel_mlp": channel_mlp.reference}
NAMES = Branch._fields[:7]
EPS = 1e-6


def make_branch(op, shape, dtype, *, keep=False, requires_grad=True, seed=0):
    """Every tensor random, none zero or one by chance; ``shape`` is images, tokens, channels, hidden width."""
    images, tokens, channels, hidden = shape
    mixed = tokens if op == "token_mlp" else channels
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0, shift=0.0):
        values = torch.randn(size, generator=generator, dtype=torch.float64) * scale + shift
        return values.to(dtype).requires_grad_(requires_grad)

    factors = torch.rand(images, generator=generator)
    factors[: images // 3] = 0.0  # dropped branches
    return Branch(
        x=normal(images, tokens, channels, scale=2.0, shift=0.5),
        norm_weight=normal(channels, scale=0.3, shift=1.0),
        norm_bias=normal(channels, scale=0.3),
        w1=normal(hidden, mixed, scale=mixed**-0.5),
        b1=normal(hidden, scale=0.3),
        w2=normal(mixed, hidden, scale=hidden**-0.5),
        b2=normal(mixed, scale=0.3),
        keep=factors if keep else None,
    )


def as_dtype(branch, dtype):
    """The same values in another dtype, as leaves."""
    tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in branch[:7]]
    return Branch(*tensors, branch.keep)


def gradient_like(branch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(branch.x.shape, generator=generator, dtype=torch.float64).to(branch.x.dtype)


def results(call, branch):
    """Output and the seven gradients of a call, by name."""
    out = call(branch)
    gradients = torch.autograd.grad(out, branch[:7], gradient_like(branch).to(out.dtype))
    return {"out": out.detach()} | dict(zip(NAMES, gradients, strict=True))


def reference_results(op, branch, act):
    return results(lambda b: REFERENCE[op](b, EPS, act), branch)


def backend_results(op, branch, act, backend):
    return results(lambda b: run(op, b, EPS, act, backend), branch)


def distance(actual, expected):
    """||actual - expected|| / ||expected||."""
    difference = (actual.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-300)).item()

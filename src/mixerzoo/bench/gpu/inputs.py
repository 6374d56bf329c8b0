"""Problems with every tensor random, and the two sides that compute them.

Legend: N images, S tokens, C channels, H hidden width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from mixerzoo.bench.gpu.cases import Case
from mixerzoo.config import Gelu
from mixerzoo.ops import channel_mlp, token_mlp
from mixerzoo.ops.backends.triton import interpreted
from mixerzoo.ops.operation import run
from mixerzoo.ops.problem import Branch, Operation

EPS = 1e-6
"""LayerNorm's, as every variant has it."""

NUMERICS: Mapping[str, torch.dtype] = MappingProxyType(
    {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "tf32": torch.float32}
)
"""How products run, to the dtype of their operands."""

REFERENCES = {"token_mlp": token_mlp.reference, "channel_mlp": channel_mlp.reference}

Call: TypeAlias = Callable[[Branch], Tensor]
"""An operation as a function of its tensors."""

Compute: TypeAlias = Callable[[Branch, Tensor], dict[str, Tensor]]
"""From a branch and the gradient of its result to all results by name; see :func:`differentiated`."""

RESULTS = ("out", "inference", *Branch._fields[:7])
"""Result with and without a backward pass to follow, and the gradients by what they belong to."""


@dataclass(frozen=True)
class Setting:
    """One problem.

    Attributes:
        op: Which branch.
        tokens: S.
        channels: C.
        hidden: H.
        images: N.
        numerics: One of :data:`NUMERICS`.
        stream: Dtype of the tokens and of LayerNorm's parameters; differs from that of the weights under autocast.
        act: GELU flavour.
        keep: Whether there are factors of stochastic depth.
        device: Where.
    """

    op: Operation
    tokens: int
    channels: int
    hidden: int
    images: int
    numerics: str
    stream: torch.dtype
    act: Gelu
    keep: bool
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, in which products run."""
        return NUMERICS[self.numerics]


def this_device() -> torch.device:
    """The CUDA device, or the CPU in a rehearsal."""
    return torch.device("cpu" if interpreted() else "cuda")


def setting_of(case: Case) -> Setting:
    """Read a problem off a case: ``op``, ``shape`` [S, C, H], ``images``, ``numerics``, ``act`` and ``keep``.

    ``stream`` names the dtype of the tokens where it is not that of the weights.
    """
    stream = case.get("stream")
    dtype = getattr(torch, stream) if stream else NUMERICS[case["numerics"]]
    tokens, channels, hidden = case["shape"]
    return Setting(
        op=case["op"],
        tokens=tokens,
        channels=channels,
        hidden=hidden,
        images=case["images"],
        numerics=case["numerics"],
        stream=dtype,
        act=case["act"],
        keep=case["keep"],
        device=this_device(),
    )


@contextlib.contextmanager
def precision(numerics: str) -> Iterator[None]:
    """Let float32 products be TF32, or not, for a while."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if numerics == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class Random:
    """Random tensors on one device, the same ones for the same seed."""

    def __init__(self, device: torch.device, seed: int = 0):
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Normal values with this standard deviation and mean."""
        values = torch.randn(shape, generator=self._generator, device=self._device)
        return (values * scale + shift).to(dtype)

    def keep(self, images: int) -> Tensor:
        """Factors (N,) in float32: every third image is dropped, the others have between 0.5 and 1.5."""
        factors = torch.rand(images, generator=self._generator, device=self._device) + 0.5
        factors[::3] = 0.0
        return factors


def random_branch(setting: Setting, seed: int = 0) -> tuple[Branch, Tensor]:
    """A branch and the gradient of its result, of unit scale throughout; rows of x differ in mean and spread."""
    random, low, high = Random(setting.device, seed), setting.dtype, setting.stream
    images, tokens, channels, hidden = setting.images, setting.tokens, setting.channels, setting.hidden
    mixed = tokens if setting.op == "token_mlp" else channels
    rows = random.normal(images, tokens, 2, dtype=torch.float32)
    x = random.normal(images, tokens, channels, dtype=torch.float32)
    branch = Branch(
        x=(x * (1.0 + 0.3 * rows[..., :1].tanh()) + 0.5 * rows[..., 1:]).to(high),
        norm_weight=random.normal(channels, dtype=high, scale=0.3, shift=1.0),
        norm_bias=random.normal(channels, dtype=high, scale=0.3),
        w1=random.normal(hidden, mixed, dtype=low, scale=mixed**-0.5),
        b1=random.normal(hidden, dtype=low, scale=0.3),
        w2=random.normal(mixed, hidden, dtype=low, scale=hidden**-0.5),
        b2=random.normal(mixed, dtype=low, scale=0.3),
        keep=random.keep(images) if setting.keep else None,
    )
    return branch, random.normal(images, tokens, channels, dtype=high)


def by_backend(op: Operation, act: Gelu, backend: str) -> Call:
    """The operation by a backend."""
    return lambda branch: run(op, branch, EPS, act, backend)


def by_reference(setting: Setting) -> Call:
    """The definition in plain PyTorch; under autocast where tokens and weights differ in dtype."""
    mixed = setting.stream != setting.dtype

    def call(branch: Branch) -> Tensor:
        with torch.autocast(branch.x.device.type, setting.dtype if mixed else None, enabled=mixed):
            return REFERENCES[setting.op](branch, EPS, setting.act)

    return call


def differentiated(call: Call) -> Compute:
    """An operation's results with and without gradients, and all seven gradients."""

    def compute(branch: Branch, g: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            inference = call(branch)
        leaves = [tensor.detach().requires_grad_() for tensor in branch[:7]]
        out = call(Branch._make((*leaves, branch.keep)))
        gradients = torch.autograd.grad(out, leaves, g)
        return dict(zip(RESULTS, (out.detach(), inference, *gradients), strict=True))

    return compute


def in_float64(setting: Setting, branch: Branch, g: Tensor) -> dict[str, Tensor]:
    """What the results ought to be: the definition in float64 on the same values."""
    exact_branch = Branch._make(None if tensor is None else tensor.double() for tensor in branch)
    definition = REFERENCES[setting.op]
    compute = differentiated(lambda exact: definition(exact, EPS, setting.act))
    return compute(exact_branch, g.double())

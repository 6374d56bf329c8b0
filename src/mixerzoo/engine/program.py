"""What is to be optimised and what running it can look like: the terms that the engine and its programs share.

Legend: N images, S tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from mixerzoo.checks import check_integer
from mixerzoo.config import MixerConfig
from mixerzoo.engine.folding import FoldedMixer
from mixerzoo.errors import ConfigError

Quantisation = Literal["int8", "fp8"]
QUANTISATIONS: tuple[Quantisation, ...] = ("int8", "fp8")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Request:
    """What a user asked :func:`mixerzoo.optimize` for: all that the choice of a program depends on.

    Attributes:
        config: The model's sizes and numerics.
        device: Where it is to run.
        dtype: Type in which matrix products run that are not quantised.
        quantize: Type to which weights and activations of matrix products are quantised; None for none.
        compile: Whether code may be generated and compiled.
        max_batch_size: Images at most in one pass; larger batches are cut. None for no limit.
    """

    config: MixerConfig
    device: torch.device
    dtype: torch.dtype
    quantize: Quantisation | None
    compile: bool
    max_batch_size: int | None

    @property
    def precise(self) -> torch.dtype:
        """Type of images and results: float32, or float64 where products run in that."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def make_request(
    config: MixerConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    quantize: Quantisation | None,
    compile: bool,
    max_batch_size: int | None,
) -> Request:
    """A request whose every value can be used.

    Raises:
        ConfigError: One cannot.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} cannot be used: use one of {', '.join(map(str, DTYPES))}.")
    if quantize is not None and quantize not in QUANTISATIONS:
        raise ConfigError(f"quantize={quantize!r} is unknown: use None, 'int8' or 'fp8'.")
    if max_batch_size is not None:
        check_integer("max_batch_size", max_batch_size, minimum=1)
    if not isinstance(compile, bool):
        raise ConfigError(f"compile={compile!r} must be True or False.")
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device!r} does not exist: use 'cpu' or 'cuda', for instance.") from None
    if where.type == "meta" or (where.type == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device={str(where)!r} was asked for, and there is no such device here.")
    if where.type == "cuda" and where.index is None:  # the current device is one of a thread
        where = torch.device("cuda", torch.cuda.current_device())
    return Request(config, where, dtype, quantize, compile, max_batch_size)


class Runner(Protocol):
    """A program that is ready to run. It may be called from several threads at once.

    Attributes:
        notes: What it did and how it runs, one sentence each, for the report.
        code: A file of compiled code that a later run can start from; None where there is none.
    """

    notes: tuple[str, ...]
    code: Path | None

    def stream(self, images: Tensor) -> Tensor:
        """Images (N, in_chans, H, W), contiguous, on the device -> tokens (N, S, C), both of ``request.precise``.

        The tokens are those behind the last layer and before the final LayerNorm, up to a constant for each token,
        which that LayerNorm removes.
        """
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Images as above -> what the model's ``forward`` returns, of the same type."""
        ...


@dataclass(frozen=True)
class Program:
    """One way to run a whole Mixer; a file in :mod:`mixerzoo.engine.programs` defines one as ``PROGRAM``.

    Attributes:
        name: What users call it.
        rank: Order in which the automatic choice tries programs, lowest first.
        obstacle: Why it cannot serve a request, as a clause; None where it can.
        pack: From the folded model and the request to the tensors that the program runs on, by name, those of
            :func:`mixerzoo.engine.tensors.tail` among them: what is saved.
        start: From those tensors, the request, and a file of code that an earlier run left (or None), to a program
            that is ready to run.
        reservation: Why the automatic choice should not take it although it could; None where it should.
    """

    name: str
    rank: int
    obstacle: Callable[[Request], str | None]
    pack: Callable[[FoldedMixer, Request], dict[str, Tensor]]
    start: Callable[[Mapping[str, Tensor], Request, Path | None], Runner]
    reservation: Callable[[Request], str | None] = lambda request: None  # noqa: ARG005

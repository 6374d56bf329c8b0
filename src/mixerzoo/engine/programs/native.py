"""Our own C++ (:mod:`mixerzoo.kernels.cpu`): the fastest on x86 processors with AVX-512, in bfloat16 and int8."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mixerzoo.engine.folding import FoldedMixer, normalise
from mixerzoo.engine.program import Program, Request
from mixerzoo.engine.tensors import classify, tail
from mixerzoo.errors import BuildError
from mixerzoo.kernels.cpu.build import library
from mixerzoo.kernels.cpu.library import CompiledMixer
from mixerzoo.kernels.cpu.packing import LONGEST, Format, pack


def _number(request: Request) -> Format:
    return "int8" if request.quantize == "int8" else "bf16"


def _pack(folded: FoldedMixer, request: Request) -> dict[str, Tensor]:
    number = _number(request)
    tensors = _prefixed("stem", pack(folded.stem_weight, folded.stem_bias, number, "stem"))
    for i, layer in enumerate(folded.layers):
        tensors |= {f"layers.{i}.gamma": layer.gamma1.float(), f"layers.{i}.beta": layer.beta1.float()}
        tensors |= _prefixed(f"layers.{i}.w1", pack(layer.w1, layer.b1, number, "w1"))
        tensors |= _prefixed(f"layers.{i}.w2", pack(layer.w2, None, number, "w2"))
        tensors |= _prefixed(f"layers.{i}.w3", pack(layer.w3, layer.b3, number, "w3"))
        tensors |= _prefixed(f"layers.{i}.w4", pack(layer.w4, layer.b4, number, "w4"))
    tensors |= {name: tensor.float() for name, tensor in tail(folded).items()}
    return {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


class NativeRunner:
    """Runs the compiled code; nothing in it depends on the number of images.

    Args:
        tensors: What :data:`PROGRAM` packed.
        request: What is to be run.
        code: None: the user's cache folder keeps what is compiled.
    """

    code: Path | None = None

    def __init__(self, tensors: Mapping[str, Tensor], request: Request, code: Path | None = None):  # noqa: ARG002
        self._config = request.config
        self._tensors = {name: t if t.data_ptr() % 64 == 0 else t.clone() for name, t in tensors.items()}  # cache lines
        self._mixer = CompiledMixer(request.config, self._tensors, _number(request))
        size = sum(t.nbytes for name, t in tensors.items() if name.endswith(".words")) / 1e6
        how = {
            "bf16": "bfloat16 products with float32 sums (AVX-512 BF16)",
            "int8": "int8 products with int32 sums (AVX-512 VNNI), weights with a scale for each output, activations "
            "with a scale for each row computed as they appear, so calibration is not needed",
        }[_number(request)]
        self.notes: tuple[str, ...] = (
            f"Our C++, compiled for this machine: {how}; tokens stay float32.",
            f"{size:.3g} MB of weights are packed for its tiles; any number of images runs without compiling again.",
        )

    def stream(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        return self._mixer(images, pooled=False)

    def logits(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        if self._config.global_pool == "avg":
            features = self._mixer(images, pooled=True)
        else:
            features = normalise(self._mixer(images, pooled=False), self._config.norm_eps)
        return classify(features, self._tensors)


def _obstacle(request: Request) -> str | None:
    if request.device.type != "cpu":
        return f"it runs on CPUs, not on {request.device.type}"
    if request.quantize not in (None, "int8") or (request.quantize is None and request.dtype != torch.bfloat16):
        return "it has bfloat16 and int8 products only"
    if request.dtype == torch.float64:
        return "it computes in float32 at most"
    if not request.compile:
        return "it has to be compiled, and compile=False"
    return _size_obstacle(request) or _machine_obstacle(_number(request))


def _size_obstacle(request: Request) -> str | None:
    config = request.config
    patch_values = config.in_chans * config.patch_size**2
    longest = max(patch_values, config.num_tokens, config.tokens_mlp_dim, config.embed_dim, config.channels_mlp_dim)
    if request.quantize == "int8" and longest > LONGEST:
        return f"sums of {longest:,} products of bytes may exceed 32 bits"
    for name in ("embed_dim", "channels_mlp_dim"):
        if getattr(config, name) % 64:
            return f"{name}={getattr(config, name)} is no multiple of 64"
    return None


@functools.cache
def _machine_obstacle(number: Format) -> str | None:
    supported = torch.cpu._is_avx512_bf16_supported() if number == "bf16" else torch.cpu._is_vnni_supported()
    if not (torch.cpu._is_avx512_supported() and supported):
        return f"this processor lacks AVX-512 {'BF16' if number == 'bf16' else 'VNNI'}"
    try:
        library(number)
    except BuildError as error:
        return str(error)
    return None


def _reservation(request: Request) -> str | None:
    if request.quantize is None and torch.cpu._is_amx_tile_supported():
        return "this processor has AMX, which oneDNN uses and our code does not; program='native' takes it"
    return None


PROGRAM = Program(name="native", rank=20, obstacle=_obstacle, reservation=_reservation, pack=_pack, start=NativeRunner)

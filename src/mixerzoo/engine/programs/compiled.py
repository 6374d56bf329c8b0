"""The folded model in plain PyTorch, compiled by Inductor: on every device and in every dtype."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch._inductor
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mixerzoo.engine.folding import FoldedLayer, FoldedMixer, gelu, normalise
from mixerzoo.engine.program import Program, Request
from mixerzoo.engine.tensors import classify, layers_of, named
from mixerzoo.errors import EngineError
from mixerzoo.kernels.cpu.build import compiler


def _pack(folded: FoldedMixer, request: Request) -> dict[str, Tensor]:
    return {name: t.detach().to(request.device, request.dtype, copy=True) for name, t in named(folded).items()}


class FoldedForward(nn.Module):
    """The folded model as a module whose tensors the compiler may take for constants.

    Args:
        tensors: See :func:`mixerzoo.engine.tensors.named`.
        request: What is to be run.
    """

    def __init__(self, tensors: Mapping[str, Tensor], request: Request):
        super().__init__()
        self.config = request.config
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name.replace(".", "_")) for name in self.names}

    def stream(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        tensors, config = self._tensors(), self.config
        weight = tensors["stem.weight"]
        kernel = weight.view(-1, config.in_chans, config.patch_size, config.patch_size)
        patches = F.conv2d(images.to(weight.dtype), kernel, tensors["stem.bias"], stride=config.patch_size)
        x_NSC = patches.flatten(2).transpose(1, 2)
        for layer in layers_of(tensors, config.depth, FoldedLayer):
            y_NCS = (normalise(x_NSC, config.norm_eps) * layer.gamma1 + layer.beta1).transpose(1, 2)
            mixed_NCS = F.linear(gelu(F.linear(y_NCS, layer.w1, layer.b1), config), layer.w2)
            x_NSC = x_NSC + mixed_NCS.transpose(1, 2)
            hidden_NSD = gelu(F.linear(normalise(x_NSC, config.norm_eps), layer.w3, layer.b3), config)
            x_NSC = x_NSC + F.linear(hidden_NSD, layer.w4, layer.b4)
        return x_NSC

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        tensors = self._tensors()
        features = normalise(self.stream(images), self.config.norm_eps)
        if self.config.global_pool == "avg":
            features = features.mean(1)
        return classify(features, tensors)


class CompiledRunner:
    """Runs the folded model: on CPUs compiled ahead of time, once for any number of images; elsewhere as it is called.

    Args:
        tensors: What :data:`PROGRAM` packed.
        request: What is to be run.
        code: A file that an earlier run compiled, to be used instead of compiling again.
    """

    def __init__(self, tensors: Mapping[str, Tensor], request: Request, code: Path | None = None):
        self._model = FoldedForward(tensors, request).eval()
        self._precise = request.precise
        self.code: Path | None = None
        self._run: Callable[[Tensor], Tensor] = self._model
        dtype = str(request.dtype).removeprefix("torch.")
        self.notes: tuple[str, ...] = (f"The folded model in plain PyTorch, {dtype}, {self._prepare(request, code)}.",)
        if _slow_bfloat16(request):
            self.notes += ("This processor has no bfloat16 products: dtype=torch.float32 is likely to be faster.",)

    def _prepare(self, request: Request, code: Path | None) -> str:
        """Compile as the device and the tools at hand allow; how, in words."""
        if not request.compile:
            return "run eagerly (compile=False)"
        if not self._ahead_of_time(request):
            self._run = _just_in_time(self._model)
            return "compiled at the first call, once for one image and once for more"
        if code is None and compiler() is None:
            return "run eagerly, because there is no C++ compiler"
        self.code = code or self._compile(request)
        try:
            self._run = torch._inductor.aoti_load_package(str(self.code))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise EngineError(f"{self.code} cannot be loaded ({reason}): optimize the model again.") from error
        packed = ", its weights packed by oneDNN" if _frozen(request) else ""
        sizes = "for single images" if request.max_batch_size == 1 else "once for any number of images"
        return f"compiled ahead of time, {sizes}{packed}"

    def stream(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`; not compiled."""
        return self._model.stream(images).to(self._precise)

    def logits(self, images: Tensor) -> Tensor:
        """See :class:`mixerzoo.engine.program.Runner`."""
        return self._run(images).to(self._precise)

    def _ahead_of_time(self, request: Request) -> bool:
        """Whether the compiler can pack the weights into a file: CPU code, and no tensor subclasses."""
        return request.device.type == "cpu" and all(type(buffer) is Tensor for buffer in self._model.buffers())

    def _compile(self, request: Request) -> Path:
        """A package of compiled code and packed weights, in a folder that lives as long as this object."""
        folder = tempfile.mkdtemp(prefix="mixerzoo-")
        weakref.finalize(self, _remove, folder, os.getpid())
        config, largest = request.config, request.max_batch_size or 2**16
        shape = (min(3, largest), config.in_chans, *config.image_hw)
        example = torch.zeros(shape, dtype=self._precise, device="cpu")
        count = torch.export.Dim("count", min=1, max=largest) if largest > 1 else torch.export.Dim.STATIC
        with torch.no_grad():
            exported = torch.export.export(self._model, (example,), dynamic_shapes={"images": {0: count}})
            path = Path(folder) / "compiled.pt2"
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs={"freezing": _frozen(request)}
            )
        return path


def _just_in_time(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model through ``torch.compile``, which compiles it for one image and for more, and no more often."""
    compiled = torch.compile(model)

    def run(images: Tensor) -> Tensor:
        if not images.is_inference():  # the compiler tells both kinds of tensor apart
            images = images.clone()
        if images.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(images, 0)
        return compiled(images)

    return run


def _frozen(request: Request) -> bool:
    """Whether weights become constants of the code: oneDNN packs no float64, and frozen code asks it to."""
    return request.dtype != torch.float64


def _slow_bfloat16(request: Request) -> bool:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return request.device.type == "cpu" and request.dtype == torch.bfloat16 and x86 and not supported


def _remove(folder: str, process: int) -> None:
    """Remove a temporary folder, unless this is a process forked from the one that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _obstacle(request: Request) -> str | None:
    if request.quantize is not None:
        return "it has no quantised products"
    return None


PROGRAM = Program(
    name="compiled",
    rank=90,
    obstacle=_obstacle,
    pack=_pack,
    start=CompiledRunner,
)

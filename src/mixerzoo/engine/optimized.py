"""The result of :func:`mixerzoo.optimize`: a module that runs a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mixerzoo.config import Configured
from mixerzoo.engine.artefact import Artefact, write
from mixerzoo.engine.folding import normalise
from mixerzoo.engine.programs import PROGRAMS
from mixerzoo.errors import EngineError, InputSizeError
from mixerzoo.model import Mixer

_BATCH = 64  # images at once where agreement is measured


@dataclass(frozen=True)
class EngineReport:
    """What runs and why; ``print`` it.

    Attributes:
        program: Name of the program.
        device: Where it runs.
        notes: What was done, one sentence each.
        passed_over: Each program that was preferred and why it does not run, on the machine that packed.
        agreement: Share of calibration images whose first class is the model's; None without calibration.
    """

    program: str
    device: str
    notes: tuple[str, ...]
    passed_over: dict[str, str]
    agreement: float | None

    def __str__(self) -> str:
        """One line for the program, one for each thing done, one for each program that does not run."""
        lines = [f"program: {self.program} on {self.device}", *(f"  {note}" for note in self.notes)]
        if self.agreement is not None:
            lines.append(f"  First class as the model's on {100 * self.agreement:.1f} % of the calibration images.")
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.passed_over.items()])


class OptimizedMixer(Configured, nn.Module):
    """A Mixer that was optimized for inference: images in, the model's outputs out, in float32.

    It has no parameters and an empty ``state_dict``; it may be called from several threads at once.

    Args:
        artefact: The program and what it runs on.

    Attributes:
        config: The model's sizes and numerics.
        request: What was asked for.
        pretrained_cfg: The model's: preprocessing and source of the weights.
        pretrained_head: The model's: whether the head came with those weights.
    """

    def __init__(self, artefact: Artefact):
        super().__init__()
        self.request = artefact.request
        self.config = artefact.request.config
        self.pretrained_cfg, self.pretrained_head = dict(artefact.pretrained_cfg), artefact.pretrained_head
        self._artefact, self._tensors = artefact, artefact.tensors
        self._runner = PROGRAMS[artefact.program].start(artefact.tensors, artefact.request, artefact.code)
        self._agreement: float | None = None
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes), or what else the model's ``forward`` returns.

        Raises:
            InputSizeError: The images are not of the model's size or channels.
        """
        return self._in_pieces(self._runner.logits, images)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> normalised tokens (N, S, C).

        Raises:
            InputSizeError: The images are not of the model's size or channels.
        """
        x_NSC = self._in_pieces(self._runner.stream, images)
        with self._as_written():
            return normalise(x_NSC, self.config.norm_eps) * self._tail("norm.weight") + self._tail("norm.bias")

    def forward_head(self, x_NSC: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (N, S, C) from :meth:`forward_features` and classify them.

        Args:
            x_NSC: Normalised tokens.
            pre_logits: Return the pooled features (N, C) instead of the logits (N, num_classes).
        """
        x_NSC = x_NSC.to(self.request.device, self.request.precise)
        pooled = x_NSC.mean(dim=1) if self.config.global_pool == "avg" else x_NSC
        if pre_logits or "plain_head.weight" not in self._tensors:
            return pooled
        with self._as_written():
            return nn.functional.linear(pooled, self._tail("plain_head.weight"), self._tail("plain_head.bias"))

    def forward_intermediates(self, *args: object, **kwargs: object) -> Tensor:  # noqa: ARG002
        """Not available.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            "An optimized model has no outputs of single layers: the last bias of token mixing, which no logit depends "
            "on, was left out, and with it a constant of every token. Call forward_intermediates of the model itself."
        )

    def train(self, mode: bool = True) -> OptimizedMixer:
        """Stay in evaluation mode.

        Raises:
            EngineError: ``mode`` is true.
        """
        if mode:
            raise EngineError("An optimized model is for inference: train the model itself, then optimize it again.")
        super().train(False)
        return self

    def _apply(self, *args: object, **kwargs: object) -> OptimizedMixer:  # noqa: ARG002
        """What ``to``, ``half``, ``cuda`` and the like end in: packed weights stay where and what they are."""
        raise EngineError(
            f"An optimized model stays on {self.request.device} in its dtype: optimize the model itself again with "
            "device= and dtype=."
        )

    def __reduce__(self) -> tuple[type[OptimizedMixer], tuple[Artefact]]:
        """Copies and pickles start from the packed tensors, as :func:`mixerzoo.load_optimized` does."""
        return OptimizedMixer, (dataclasses.replace(self._artefact, code=None),)

    def report(self) -> EngineReport:
        """What runs and why."""
        head = ", the final one into the head" if self.config.num_classes else ""
        folded = (
            f"The second LayerNorm of every layer is folded into the weights behind it{head}; the last bias of token "
            "mixing, which LayerNorm removes, is left out."
        )
        limit = self.request.max_batch_size
        pieces = () if limit is None else (f"Batches of more than {limit} images are cut into pieces.",)
        notes = (folded, *self._runner.notes, *pieces)
        return EngineReport(
            self._artefact.program, str(self.request.device), notes, self._artefact.passed_over, self._agreement
        )

    def save(self, folder: str | Path) -> None:
        """Write a folder from which :func:`mixerzoo.load_optimized` starts without folding and packing again.

        Args:
            folder: A folder that does not exist yet.

        Raises:
            EngineError: It exists already or cannot be written.
        """
        write(dataclasses.replace(self._artefact, code=self._runner.code), Path(folder))

    def measure_agreement(self, model: Mixer, images: Tensor) -> float:
        """Share of images whose first class is that of the model, which the report names from then on.

        Args:
            model: The model that was optimized.
            images: Images as the model takes them.
        """
        flags = {module: module.training for module in model.modules()}
        like = model.stem.proj.weight
        model.eval()
        try:
            with torch.inference_mode(), self._as_written():
                batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
                same = [
                    self(batch).argmax(-1).cpu() == model(batch.to(like.device, like.dtype)).argmax(-1).cpu()
                    for batch in batches
                ]
        finally:
            for module, flag in flags.items():
                module.training = flag
        self._agreement = torch.cat(same).double().mean().item()
        return self._agreement

    def _as_written(self) -> torch.autocast:
        """Outside of anybody's autocast: dtypes are those of the request."""
        return torch.autocast(self.request.device.type, enabled=False)

    def _in_pieces(self, run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        expected = (self.config.in_chans, *self.config.image_hw)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise InputSizeError(
                f"The model takes images of shape (batch, {', '.join(map(str, expected))}) but got "
                f"{tuple(images.shape)}: resize them (mixerzoo.create_transform does)."
            )
        if not images.is_floating_point():
            raise InputSizeError(
                f"The model takes images of floating-point numbers, prepared by mixerzoo.create_transform, but got "
                f"{str(images.dtype).removeprefix('torch.')}."
            )
        images = images.detach().to(self.request.device, self.request.precise).contiguous()
        with torch.inference_mode(), self._as_written():
            if not len(images):
                result = run(images.new_zeros(1, *expected))[:0]
            else:
                limit = self.request.max_batch_size or len(images)
                pieces = [run(images[i : i + limit]) for i in range(0, len(images), limit)]
                result = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return result.clone()  # an ordinary tensor again, that gradients of others may flow past

    def _tail(self, name: str) -> Tensor:
        return self._tensors[name].to(self.request.precise)

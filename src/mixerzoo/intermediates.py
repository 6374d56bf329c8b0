"""timm's convention for the outputs of intermediate layers, for any model with a stem, blocks and a final norm."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixerzoo.config import GlobalPool, MixerConfig
from mixerzoo.errors import ConfigError


def _take_indices(depth: int, indices: int | list[int] | tuple[int, ...] | None) -> list[int]:
    """Absolute layer indices for timm's notation: None for all, n for the last n, or a sequence (negative allowed)."""
    if indices is None:
        return list(range(depth))
    wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not wanted or not all(-depth <= i < depth for i in wanted):
        raise ConfigError(f"indices={indices!r} do not name layers of a Mixer with {depth}: use 0..{depth - 1}.")
    return [i % depth for i in wanted]


class IntermediateOutputs(nn.Module):
    """The part of :class:`mixerzoo.Mixer` that timm's feature wrappers call."""

    config: MixerConfig
    stem: nn.Module
    blocks: nn.Sequential
    norm: nn.Module
    feature_info: list[dict[str, object]]
    grad_checkpointing: bool

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replace the head."""
        raise NotImplementedError

    def _run_block(self, block: nn.Module, x_NSC: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x_NSC, use_reentrant=False)
        return block(x_NSC)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | tuple[int, ...] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Run the model and keep the output of chosen layers (timm's convention).

        Args:
            x: Images (N, in_chans, H, W).
            indices: Layers to keep: a sequence of indices (negative from the end), the last n, or None for all.
            norm: Apply the final LayerNorm to what is kept.
            stop_early: Do not run the layers behind the last one kept.
            output_fmt: ``"NCHW"`` gives (N, C, rows, columns), ``"NLC"`` gives (N, S, C).
            intermediates_only: Return the list alone, without the final tokens.

        Returns:
            The kept outputs, preceded by the normalised final tokens (N, S, C) unless ``intermediates_only``.

        Raises:
            ConfigError: ``output_fmt`` is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt={output_fmt!r} is unknown: use 'NCHW' or 'NLC'.")
        take = _take_indices(len(self.blocks), indices)
        kept: list[Tensor] = []
        x_NSC = self.stem(x)
        for i, block in enumerate(self.blocks):
            if stop_early and i > max(take):
                break
            x_NSC = self._run_block(block, x_NSC)
            if i in take:
                kept.append(self.norm(x_NSC) if norm else x_NSC)
        if output_fmt == "NCHW":
            rows, columns = self.config.grid_size
            kept = [y.transpose(1, 2).reshape(-1, y.shape[-1], rows, columns) for y in kept]
        return kept if intermediates_only else (self.norm(x_NSC), kept)

    def prune_intermediate_layers(
        self, indices: int | list[int] | tuple[int, ...] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediate outputs do not need (timm's convention); return their indices."""
        take = _take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max(take) + 1]
        self.feature_info = self.feature_info[: len(self.blocks)]
        self.config = dataclasses.replace(self.config, depth=len(self.blocks))
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

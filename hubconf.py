"""torch.hub entry points: ``torch.hub.load("organisation/mixerzoo", "mixer_b16", pretrained=True)``.

Arguments are those of ``mixerzoo.create_model``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
try:
    from mixerzoo import create_model
    from mixerzoo.config import PRESETS
finally:
    sys.path.pop(0)

dependencies = ["torch", "torchvision", "timm", "safetensors", "huggingface_hub"]


def _entrypoint(variant: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create_model(variant, pretrained, **kwargs)

    entrypoint.__name__ = variant
    entrypoint.__doc__ = f"Create {variant}; arguments are those of mixerzoo.create_model."
    return entrypoint


globals().update({variant: _entrypoint(variant) for variant in PRESETS})

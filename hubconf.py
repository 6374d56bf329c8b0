"""torch.hub entry points: ``torch.hub.load("organisation/mixerzoo", "mixer_b16", pretrained=True)``.

Arguments are those of ``mixerzoo.create_model``. Whatever is public here is an entry point.
"""

import sys as _sys
from functools import partial as _partial
from pathlib import Path as _Path

_sys.path.insert(0, str(_Path(__file__).resolve().parent / "src"))
try:
    from mixerzoo import create_model as _create_model
    from mixerzoo.config import PRESETS as _PRESETS
finally:
    _sys.path.pop(0)

dependencies = ["torch", "torchvision", "timm", "safetensors", "huggingface_hub", "filelock", "google_crc32c"]

for _variant in _PRESETS:
    globals()[_variant] = _partial(_create_model, _variant)
    globals()[_variant].__doc__ = _create_model.__doc__

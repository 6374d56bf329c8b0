"""MLP-Mixer in PyTorch: every variant, every released checkpoint, true to the original."""

from mixerzoo.config import MixerConfig
from mixerzoo.conversion import Conversion, convert, load_npz
from mixerzoo.engine import OptimizedMixer, load_optimized, optimize
from mixerzoo.errors import MixerzooError
from mixerzoo.factory import create_model, create_transform
from mixerzoo.inference.predict import Prediction, predict
from mixerzoo.label_names import labels
from mixerzoo.model import Mixer, MixerBlock
from mixerzoo.names import get_pretrained_cfg, is_model, list_models
from mixerzoo.publish import push_to_hub, save_model

__version__ = "0.1.0"

__all__ = [
    "Conversion",
    "Mixer",
    "MixerBlock",
    "MixerConfig",
    "MixerzooError",
    "OptimizedMixer",
    "Prediction",
    "convert",
    "create_model",
    "create_transform",
    "get_pretrained_cfg",
    "is_model",
    "labels",
    "list_models",
    "load_npz",
    "load_optimized",
    "optimize",
    "predict",
    "push_to_hub",
    "save_model",
]

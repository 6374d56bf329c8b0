"""The house: which way imports point, what is public, and that importing does nothing."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mixerzoo
from mixerzoo.config import PRESETS

SOURCE = Path(mixerzoo.__file__).parent

# Each room may import those listed behind it, and nothing else of ours.
MAY_IMPORT = {
    "errors": set(),
    "checks": {"errors"},
    "atomic": {"errors"},
    "config": {"checks", "errors"},
    "zoo": {"config"},
    "reference": set(),
    "resize": {"checks", "config", "errors"},
    "kernels": {"config", "errors"},
    "ops": {"config", "errors", "kernels"},
    "intermediates": {"config", "errors"},
    "model": {"config", "errors", "intermediates", "ops", "resize"},
    "engine": {"checks", "config", "errors", "kernels", "model", "ops"},
    "weights": {"atomic", "checks", "config", "errors", "zoo", "resize", "model"},
    "timm_registry": {"config", "errors", "zoo", "resize", "model", "weights"},
    "names": {"config", "errors", "zoo", "weights", "timm_registry"},
    "label_names": {"errors", "zoo", "names"},
    "distributed": {"errors"},
    "data": {"atomic", "checks", "distributed", "errors"},
    "factory": {"checks", "config", "errors", "zoo", "resize", "model", "weights", "timm_registry", "names", "data"},
    "publish": {"errors", "zoo", "model", "weights", "label_names", "factory"},
    "conversion": {"config", "errors", "zoo", "model", "weights", "names", "factory"},
    "inference": {
        "atomic",
        "checks",
        "config",
        "distributed",
        "errors",
        "zoo",
        "reference",
        "model",
        "engine",
        "weights",
        "data",
        "names",
        "factory",
        "label_names",
    },
    "train": {
        "atomic",
        "checks",
        "config",
        "distributed",
        "errors",
        "resize",
        "ops",
        "model",
        "weights",
        "data",
        "factory",
        "inference",
        "label_names",
        "publish",
    },
    "bench": {
        "atomic",
        "config",
        "errors",
        "zoo",
        "model",
        "ops",
        "kernels",
        "engine",
        "weights",
        "data",
        "factory",
        "inference",
    },
    "cli": {
        "config",
        "distributed",
        "errors",
        "zoo",
        "model",
        "names",
        "label_names",
        "data",
        "factory",
        "conversion",
        "engine",
        "publish",
        "inference",
        "train",
        "bench",
    },
    "__main__": {"cli"},
    "__init__": {
        "config",
        "conversion",
        "engine",
        "errors",
        "factory",
        "inference",
        "label_names",
        "model",
        "names",
        "publish",
    },
}

# Third parties that belong to one room.
ONLY_IN = {
    "triton": {"kernels"},
    "huggingface_hub": {"weights"},
    "typer": {"cli"},
    "safetensors": {"weights", "bench", "engine"},
    "filelock": {"weights", "train"},
    "google_crc32c": {"weights"},
}

OPTIONAL = {
    "datasets",
    "gradio",
    "matplotlib",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "ray",
    "tensorboard",
    "torchao",
    "webdataset",
}


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mixerzoo":
                yield from (f"mixerzoo.{alias.name}" for alias in node.names)
            else:
                yield node.module


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "mixerzoo" and name != "mixerzoo.__version__":
            target = parts[1]
            assert target == room or target in MAY_IMPORT[room], f"{room} must not import {name}"
        elif parts[0] in ONLY_IN:
            assert room in ONLY_IN[parts[0]], f"{parts[0]} does not belong in {room}"
    for name in imports_of(path, top_level_only=True):
        assert name.split(".")[0] not in OPTIONAL, f"{name} is optional: import it where it is needed"


def test_every_room_is_known():
    assert {room_of(path) for path in FILES} <= set(MAY_IMPORT)


def test_public_surface():
    assert mixerzoo.__all__ == sorted(mixerzoo.__all__)
    assert mixerzoo.__all__ == [
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


def public_objects():
    for name in mixerzoo.__all__:
        thing = getattr(mixerzoo, name)
        yield name, thing
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    yield f"{name}.{member}", value


@pytest.mark.parametrize(("name", "thing"), list(public_objects()), ids=lambda v: v if isinstance(v, str) else "")
def test_everything_public_is_documented(name, thing):
    assert inspect.getdoc(thing), name
    raises = "raise " in inspect.getsource(thing) if inspect.isfunction(thing) else False
    if raises:
        assert "Raises:" in inspect.getdoc(thing), f"{name} raises, and does not say so"


def test_create_model_documents_every_argument():
    text = inspect.getdoc(mixerzoo.create_model)
    for name in inspect.signature(mixerzoo.create_model).parameters:
        assert f"{name}:" in text, name


def test_import_does_nothing_but_register():
    """In a fresh process: no CUDA, no Triton, no logging, no global flag, no seed, no network, nothing printed."""
    code = """
import json, logging, random, socket, sys, warnings
import torch, timm, torchvision, huggingface_hub
def state():
    return {
        "handlers": len(logging.getLogger().handlers), "level": logging.getLogger().level,
        "filters": [str(f) for f in warnings.filters], "grad": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(), "seed": torch.initial_seed(), "python": random.getstate()[1][:3],
        "rng": torch.get_rng_state().sum().item(),
        "tf32": torch.backends.cuda.matmul.allow_tf32, "deterministic": torch.are_deterministic_algorithms_enabled(),
        "timm": len(timm.list_models()),
    }
before, modules = state(), set(sys.modules)
def refuse(*a, **k): raise AssertionError("network")
socket.socket.connect = refuse
import mixerzoo
after = state()
new = {m.split(".")[0] for m in set(sys.modules) - modules}
print(json.dumps({"before": before, "after": after, "new": sorted(new), "cuda": torch.cuda.is_initialized(),
                  "triton": "triton" in sys.modules and "triton" in new}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    seen = json.loads(result.stdout)
    registered = seen["after"].pop("timm") - seen["before"].pop("timm")
    assert registered == len(PRESETS)
    assert seen["after"] == seen["before"]
    assert not seen["cuda"]
    assert not seen["triton"]
    assert not set(seen["new"]) & (OPTIONAL | {"typer", "matplotlib", "triton"})


def test_python_files_stay_readable():
    for path in FILES:
        lines = path.read_text().count("\n")
        assert lines <= 400, f"{path.name} has {lines} lines"

"""Checkpoint files of others as folders that every ``local-dir:`` name understands."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from mixerzoo.config import Gelu, MixerConfig
from mixerzoo.errors import ConfigError, WeightsError
from mixerzoo.factory import data_config
from mixerzoo.model import Mixer
from mixerzoo.names import resolve
from mixerzoo.weights import network
from mixerzoo.weights.files import PICKLED, read_pickle, read_state_dict, require_finite
from mixerzoo.weights.load import assign_weights, load_weights
from mixerzoo.weights.save import save_folder
from mixerzoo.weights.sizes import config_of, differences, recognise
from mixerzoo.zoo import WEIGHTS, WeightTag


def load_npz(model: Mixer, path: str | Path) -> None:
    """Load a Flax checkpoint (``.npz``) of Google's into a model, strictly.

    Layouts: linen and pre-linen, also below ``params/`` or ``opt/target/`` (:mod:`mixerzoo.weights.google`). The file
    must fit the model exactly; ``create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path})`` adapts
    head, stem and image size.

    Args:
        model: Its parameters are replaced; types and device stay.
        path: The file.

    Raises:
        WeightsError: An array is missing, unexpected, misshapen, pickled or not finite; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise WeightsError(f"{path} is not a Flax checkpoint (.npz); create_model's checkpoint_path takes safetensors.")
    like = model.stem.proj.weight
    load_weights(model, path, stored=model.config, dtype=like.dtype)
    if not like.is_meta:
        model.to(like.device)


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    act: Gelu | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> str:
    """Convert a checkpoint file into a folder with configuration, safetensors weights and a model card.

    Args:
        source: A Flax archive (``.npz``), or a state dict with timm's names: ``.safetensors``, or a pickled checkpoint
            (``.pth`` ...), of which only tensors are read.
        folder: Must not exist, or be empty; appears in one move when everything is written.
        model: What the file holds: a variant, or a tag, which adds GELU flavour, preprocessing, labels and scores.
            None recognises the variant by its shapes.
        act: GELU flavour; None takes the tag's, else tanh for Flax archives and erf for state dicts.
        img_size: Image size; needed where the patch grid is not square.

    Returns:
        Name of the variant.

    Raises:
        WeightsError: The file is damaged, unsafe, or not the model that it should be.
        ConfigError: ``folder`` is not empty, or an argument cannot be used.
        ModelNameError: There is no such model.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty: give a new folder.")
    flax = source.suffix.lower() == ".npz"
    row = _row(model)
    chosen: Gelu = act or (row.act if row else "tanh" if flax else "erf")
    with ThreadPoolExecutor(1) as pool:  # hashing releases the interpreter, and so does most of reading
        digest = pool.submit(network.file_digest, source) if source.is_file() else None
        tensors = read_pickle(source) if source.suffix.lower() in PICKLED else read_state_dict(source)
        sha256 = digest.result() if digest else ""
    config = config_of(tensors, source, act=chosen, img_size=img_size)
    variant = recognise(config, source)
    _check_model(source, variant, config, model, row)
    checked = Mixer.from_config(config, device="meta")
    assign_weights(checked, tensors, source, stored=config)
    if not flax:  # of an archive every value was looked at while it was read
        require_finite(checked.state_dict(), source)
    _write(
        folder,
        checked.state_dict(),
        config=config,
        variant=variant,
        preprocessing=data_config(row.name if row else variant) | {"input_size": (config.in_chans, *config.image_hw)},
        row=row,
        origin=_origin(source, sha256, row),
    )
    return variant


def _row(model: str | None) -> WeightTag | None:
    """The tag that ``model`` names, if it names one."""
    if model is None or "." not in model:
        return None
    resolved = resolve(model)
    return WEIGHTS.get(f"{resolved.variant}.{resolved.cfg.tag}")


def _check_model(source: Path, variant: str, config: MixerConfig, model: str | None, row: WeightTag | None) -> None:
    if model is None:
        return
    asked = resolve(model).variant
    if asked != variant:
        raise WeightsError(f"{source} holds {variant}, not {asked}.")
    if row is not None and (wrong := differences(config, row.config)):
        raise WeightsError(f"{source} is not {row.name}: {', '.join(wrong)}.")


def _origin(source: Path, sha256: str, row: WeightTag | None) -> dict[str, Any]:
    origin = {"converted from": source.name, "SHA-256 of that file": sha256}
    if row is not None and row.npz_url is not None:
        origin["released as"] = row.npz_url
    if row is not None and row.hub_id is not None:
        origin["on the Hub"] = row.hub_id
    return origin


def _write(folder: Path, tensors: Mapping[str, Tensor], **description: Any) -> None:
    """Fill a temporary folder beside ``folder``, and move it into place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            finished = Path(temporary) / "folder"
            save_folder(tensors, finished, **description)
            if folder.exists():
                folder.rmdir()
            finished.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error}).") from None

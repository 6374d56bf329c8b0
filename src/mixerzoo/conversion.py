"""Checkpoint files of others as folders that every ``local-dir:`` name understands."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixerzoo.config import Gelu, MixerConfig
from mixerzoo.errors import ConfigError, StorageError, WeightsError
from mixerzoo.factory import data_config
from mixerzoo.model import Mixer
from mixerzoo.names import get_pretrained_cfg, resolve
from mixerzoo.weights.checksums import file_digest, known_checksum
from mixerzoo.weights.files import CONFIG_FILE, PICKLED, WEIGHTS_FILE, read_pickle, read_state_dict, require_finite
from mixerzoo.weights.hub_config import HubConfig, read_hub_config
from mixerzoo.weights.load import assign_weights, load_weights
from mixerzoo.weights.save import save_folder
from mixerzoo.weights.sizes import config_of, differences, recognise
from mixerzoo.zoo import WEIGHTS, WeightTag


@dataclass(frozen=True)
class Conversion:
    """What :func:`mixerzoo.convert` found and wrote.

    Attributes:
        variant: The architecture.
        config: Sizes and numerics.
        act_reason: Why the GELU flavour was taken to be ``config.act``.
        folder: Where it is.
    """

    variant: str
    config: MixerConfig
    act_reason: str
    folder: Path


def load_npz(model: Mixer, path: str | Path) -> None:
    """Load a Flax checkpoint (``.npz``) of Google's into a model, strictly.

    Layouts: linen and pre-linen, also below ``params/`` or ``opt/target/`` (:mod:`mixerzoo.weights.google`). The file
    must fit the model exactly; ``create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path})`` adapts
    head, stem and image size.

    Args:
        model: Its parameters are replaced; types and device stay (one on the meta device comes to the CPU). Google's
            checkpoints want ``act="tanh"``.
        path: The file.

    Raises:
        ConfigError: ``model`` is no Mixer (a feature extractor, for instance).
        WeightsError: An array is missing, unexpected, misshapen, pickled or not finite; the message names it.
    """
    if not isinstance(model, Mixer):
        raise ConfigError(f"load_npz takes a mixerzoo.Mixer, not a {type(model).__name__}.")
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise WeightsError(f"{path} is not a Flax checkpoint (.npz); create_model's checkpoint_path takes others.")
    like = model.stem.proj.weight
    load_weights(model, path, stored=model.config, dtype=like.dtype)
    if not like.is_meta:
        model.to(like.device)


def convert(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    act: Gelu | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> Conversion:
    """Convert a checkpoint file into a folder with configuration, safetensors weights (float32) and a model card.

    Args:
        checkpoint: A Flax archive (``.npz``), or a state dict with timm's names: ``.safetensors``, or a pickled
            checkpoint (``.pth`` ...), of which only tensors are read.
        folder: Must not exist, or be empty; appears in one move when everything is written.
        model: What the file holds: a variant, or a tag, which adds GELU flavour, preprocessing, labels and scores.
            None recognises the variant by its shapes.
        act: GELU flavour; None takes the tag's, else that of a ``config.json`` beside a ``model.safetensors`` (whose
            image size, preprocessing and labels are kept too), else tanh for Flax archives and erf for state dicts.
        img_size: Image size; needed where the patch grid is not square and no ``config.json`` says it.

    Returns:
        What was written.

    Raises:
        WeightsError: The file is damaged, unsafe, or not the model that it should be.
        ConfigError: ``folder`` is not empty, or an argument cannot be used.
        StorageError: The folder cannot be written.
        ModelNameError: There is no such model.
    """
    checkpoint, folder = Path(checkpoint), Path(folder).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty: give a new folder.")
    if folder == Path.cwd():
        raise ConfigError(f"{folder} is the current folder and cannot be replaced: give a new one.")
    flax = checkpoint.suffix.lower() == ".npz"
    row = _row(model)
    beside = _config_beside(checkpoint)
    chosen, reason = _flavour(act, row, beside, flax=flax)
    if img_size is None and beside is not None:
        img_size = beside.config.img_size
    tensors, sha256 = _read_and_hash(checkpoint)
    config = config_of(tensors, checkpoint, act=chosen, img_size=img_size)
    variant = recognise(config, checkpoint)
    _check_model(checkpoint, variant, config, model, row, sha256)
    checked = Mixer.from_config(config, device="meta")
    assign_weights(checked, tensors, checkpoint, stored=config)
    if not flax:  # of an archive every value was looked at while it was read
        require_finite(checked.state_dict(), checkpoint)
    described = beside.pretrained_cfg if beside and not row else get_pretrained_cfg(row.name if row else variant)
    checked.pretrained_cfg = described.to_dict()
    same_classes = beside is not None and not row and described.num_classes == config.num_classes
    _write(
        folder,
        checked.state_dict(),
        config=config,
        variant=variant,
        preprocessing=data_config(checked),
        label_names=described.label_names if same_classes else None,
        row=row,
        origin=_origin(checkpoint, sha256, row) | {"GELU flavour": f"{chosen} ({reason})"},
    )
    return Conversion(variant, config, reason, folder)


def _read_and_hash(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the SHA-256 of a file, side by side: both leave Python's interpreter free most of the time."""
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.")
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(file_digest, path)
        tensors = read_pickle(path) if path.suffix.lower() in PICKLED else read_state_dict(path)
        return tensors, digest.result()


def _config_beside(source: Path) -> HubConfig | None:
    """What the ``config.json`` beside a ``model.safetensors`` says, if there is one."""
    path = source.with_name(CONFIG_FILE)
    if source.name != WEIGHTS_FILE or not path.is_file():
        return None
    return read_hub_config(path, str(source.parent))


def _flavour(act: Gelu | None, row: WeightTag | None, beside: HubConfig | None, *, flax: bool) -> tuple[Gelu, str]:
    """The GELU flavour, which no shape tells, and why it is taken to be that."""
    if act is not None:
        return act, "as asked for"
    if row is not None:
        return row.act, f"that of {row.name}"
    if beside is not None:
        return beside.config.act, f"as the {CONFIG_FILE} beside it says"
    return ("tanh", "Flax's") if flax else ("erf", "timm's")


def _row(model: str | None) -> WeightTag | None:
    """The tag that ``model`` names, if it names one."""
    if model is None or "." not in model:
        return None
    resolved = resolve(model)
    return WEIGHTS.get(f"{resolved.variant}.{resolved.cfg.tag}")


def _check_model(
    source: Path, variant: str, config: MixerConfig, model: str | None, row: WeightTag | None, sha256: str
) -> None:
    if model is None:
        return
    asked = resolve(model).variant
    if asked != variant:
        raise WeightsError(f"{source} holds {variant}, not {asked}.")
    if row is not None and (wrong := differences(config, row.config)):
        raise WeightsError(f"{source} is not {row.name}: {', '.join(wrong)}.")
    if row is not None and row.npz_url is not None and source.suffix.lower() == ".npz":
        known = known_checksum(row.npz_url)
        if known not in (None, sha256):
            raise WeightsError(f"{source} is not {row.name}, whose official file has SHA-256 {known}, not {sha256}.")


def _origin(source: Path, sha256: str, row: WeightTag | None) -> dict[str, Any]:
    origin = {"converted from": source.name, "SHA-256 of that file": sha256}
    if row is not None and row.npz_url is not None:
        origin["said to be"] = row.npz_url
    if row is not None and row.hub_id is not None:
        origin["said to be on the Hub as"] = row.hub_id
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
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror or error}).") from None

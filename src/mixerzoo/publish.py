"""Saving models as folders, and sending such folders to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixerzoo.errors import ConfigError, DataError, LabelsUnknownError, WeightsError
from mixerzoo.factory import data_config
from mixerzoo.label_names import labels
from mixerzoo.model import Mixer
from mixerzoo.weights.files import WEIGHTS_FILE, read_state_dict
from mixerzoo.weights.official import entry_folder, official_weights, read_record
from mixerzoo.weights.save import CONFIG_FILE, save_folder
from mixerzoo.weights.sizes import variant_of
from mixerzoo.weights.upload import hub_address, upload_folder, uploaded_sha256
from mixerzoo.zoo import VARIANTS, WEIGHTS, WeightTag


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Save a model as a folder: ``config.json``, ``model.safetensors`` and, unless there is one, a model card.

    ``create_model("local-dir:...", pretrained=True)`` and :func:`mixerzoo.push_to_hub` take such folders, and so do
    timm and Transformers' timm wrapper where timm has the architecture. Files of the same names are replaced.

    Args:
        model: A :class:`mixerzoo.Mixer`.
        folder: Created if need be.
        label_names: Names of the classes in the order of the outputs; None keeps the model's own, if it has some.
        preprocessing: timm's data config; None for the model's own.
        dtype: Type of the stored tensors; None keeps the model's.

    Raises:
        ConfigError: ``model`` is no whole Mixer (a feature extractor, for instance), or there are more or fewer names
            than classes.
        WeightsError: The files cannot be stored.
    """
    if not isinstance(model, Mixer):
        raise ConfigError(f"save_model takes a mixerzoo.Mixer, not a {type(model).__name__}.")
    if label_names is None:
        label_names = _own_labels(model)
    elif len(label_names) != model.num_classes:
        raise ConfigError(f"{len(label_names)} label_names were given for {model.num_classes} classes.")
    described = getattr(model, "pretrained_cfg", None) or {}
    base = variant_of(model.config) or str(described.get("architecture"))
    save_folder(
        {name: tensor.to(dtype) if dtype else tensor for name, tensor in model.state_dict().items()},
        Path(folder),
        config=model.config,
        variant=base if base in VARIANTS else "mixer_b16",  # of sizes of one's own every field is stored
        preprocessing=preprocessing or data_config(model),
        label_names=label_names,
    )


def _own_labels(model: Mixer) -> list[str] | None:
    try:
        return labels(model)
    except LabelsUnknownError:
        return None


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    label_names: Sequence[str] | None = None,
) -> str:
    """Save a model and upload it to the Hugging Face Hub.

    Args:
        model: A :class:`mixerzoo.Mixer`.
        repo_id: ``"organisation/name"``; created if need be.
        private: Whether a new repository is private.
        token: Access token; None for the one of `hf auth login`.
        revision: Branch; None for the main one.
        label_names: As for :func:`mixerzoo.save_model`.

    Returns:
        The repository's address.

    Raises:
        ConfigError: See :func:`mixerzoo.save_model`.
        HubError: The upload failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, label_names=label_names)
        return upload_folder(Path(folder), repo_id, private=private, token=token, revision=revision)


def push_folder(
    folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None, revision: str | None = None
) -> str:
    """Upload a folder that :func:`mixerzoo.save_model`, ``mixerzoo convert`` or ``mixerzoo train`` wrote.

    Raises:
        DataError: It is no such folder.
        HubError: The upload failed.
    """
    path = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise DataError(f"{path} has no {name}: give a folder that convert, train or save_model wrote.")
    return upload_folder(path, repo_id, private=private, token=token, revision=revision)


def push_official(organisation: str, *, private: bool = False, token: str | None = None) -> Iterator[tuple[str, str]]:
    """Convert and upload every official checkpoint that no Hub repository has, one repository a tag.

    What was converted or uploaded before is not done again, so a run that broke off goes on where it ended.

    Args:
        organisation: Receives ``organisation/variant.tag``.
        private: Whether new repositories are private.
        token: Access token; None for the one of `hf auth login`.

    Yields:
        The tag's name, and its repository's address.

    Raises:
        HubError: A download or an upload failed.
        WeightsError: A file is not the checkpoint that it should be.
    """
    for row in WEIGHTS.values():
        if row.npz_url is not None and row.hub_id is None:
            yield row.name, _push_tag(row, f"{organisation}/{row.name}", private=private, token=token)


def _push_tag(row: WeightTag, repo_id: str, *, private: bool, token: str | None) -> str:
    assert row.npz_url is not None
    stored = row.config
    path = official_weights(row.npz_url, row.name, stored=stored)
    record = read_record(entry_folder(row.npz_url), row.npz_url)
    if record is None:
        raise WeightsError(f"The cache entry of {row.name} vanished while it was uploaded: run the command again.")
    if uploaded_sha256(repo_id, WEIGHTS_FILE, token=token) == record.result_sha256:
        return hub_address(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(
            read_state_dict(path),
            Path(folder),
            config=stored,
            variant=row.variant,
            preprocessing=data_config(row.name),
            row=row,
            origin=asdict(record),
        )
        return upload_folder(Path(folder), repo_id, private=private, token=token)

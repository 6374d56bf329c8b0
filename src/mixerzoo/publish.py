"""Saving models as folders, and sending such folders to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixerzoo.errors import ConfigError, DataError, LabelsUnknownError, WeightsError, did_you_mean
from mixerzoo.factory import data_config
from mixerzoo.label_names import labels
from mixerzoo.model import Mixer
from mixerzoo.weights.files import CONFIG_FILE, WEIGHTS_FILE, read_state_dict
from mixerzoo.weights.official import entry_folder, official_weights, read_record
from mixerzoo.weights.save import save_folder
from mixerzoo.weights.sizes import variant_of
from mixerzoo.weights.upload import check_repo_id, hub_address, upload_folder, uploaded_sha256
from mixerzoo.zoo import VARIANTS, WEIGHTS, Score, WeightTag


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    origin: Mapping[str, Any] | None = None,
    scores: Sequence[tuple[str, float, str]] = (),
) -> None:
    """Save a model as a folder: ``config.json``, ``model.safetensors`` and, unless there is one, a model card.

    ``create_model("local-dir:...", pretrained=True)`` loads such folders and ``mixerzoo push`` uploads them; timm and
    Transformers' timm wrapper load them too where timm has the architecture. Files of the same names are replaced.

    Args:
        model: A :class:`mixerzoo.Mixer`.
        folder: Created if need be.
        label_names: Names of the classes in the order of the outputs; None keeps the model's own, if it has some.
        preprocessing: Entries of timm's data config (``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``)
            that replace the model's own.
        dtype: Type of the stored tensors; None keeps the model's.
        origin: For a new model card: where the weights come from, one line an entry.
        scores: For a new model card: how good the model is: what was measured (``"top-1"``), percent, and by whom or on
            what.

    Raises:
        ConfigError: ``model`` is no whole Mixer (a feature extractor or a pruned model, for instance), ``label_names``
            are not one text a class, or ``preprocessing`` has unknown or unusable entries.
        StorageError: The files cannot be stored.
    """
    _save(
        model,
        Path(folder),
        label_names=label_names,
        preprocessing=preprocessing,
        dtype=dtype,
        origin=origin,
        scores=scores,
    )


def _save(
    model: nn.Module,
    folder: Path,
    *,
    label_names: Sequence[str] | None,
    preprocessing: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    origin: Mapping[str, Any] | None = None,
    scores: Sequence[tuple[str, float, str]] = (),
    load_name: str | None = None,
) -> None:
    if not isinstance(model, Mixer):
        raise ConfigError(f"save_model takes a mixerzoo.Mixer, not a {type(model).__name__}.")
    state = model.state_dict()
    if state.keys() != Mixer.from_config(model.config, device="meta").state_dict().keys():
        raise ConfigError("save_model takes a whole Mixer; parts of this one were replaced or removed.")
    if any(tensor.is_meta for tensor in state.values()):
        raise ConfigError("The model is on the meta device and has no values to save.")
    if label_names is None:
        label_names = _own_labels(model)
    elif len(label_names) != model.num_classes or not all(isinstance(name, str) for name in label_names):
        raise ConfigError(f"label_names must be {model.num_classes} texts, one a class.")
    known = data_config(model)
    for key in preprocessing or {}:
        if key not in known:
            raise ConfigError(f"preprocessing has no entry {key!r}.{did_you_mean(key, known)}")
    described = getattr(model, "pretrained_cfg", None) or {}
    base = variant_of(model.config) or str(described.get("architecture"))
    save_folder(
        {name: tensor.to(dtype) if dtype else tensor for name, tensor in state.items()},
        folder,
        config=model.config,
        variant=base if base in VARIANTS else "mixer_b16",  # of sizes of one's own every field is stored
        preprocessing=known | (preprocessing or {}),
        label_names=label_names,
        origin=origin,
        scores=[Score(*score) for score in scores],
        load_name=load_name,
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
    commit_message: str = "Upload with mixerzoo",
    label_names: Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Save a model and upload it to the Hugging Face Hub; a model card that the repository has stays.

    Args:
        model: A :class:`mixerzoo.Mixer`.
        repo_id: ``"organisation/name"``; created if need be.
        private: Whether a new repository is private.
        token: Access token; None for the one of `hf auth login`.
        revision: Branch; None for the main one.
        commit_message: First line of the commit.
        label_names: As for :func:`mixerzoo.save_model`.
        preprocessing: As for :func:`mixerzoo.save_model`.
        dtype: As for :func:`mixerzoo.save_model`.

    Returns:
        The repository's address.

    Raises:
        ConfigError: See :func:`mixerzoo.save_model`.
        HubError: The upload failed.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        _save(
            model,
            Path(folder),
            label_names=label_names,
            preprocessing=preprocessing,
            dtype=dtype,
            load_name=f"hf-hub:{repo_id}",
        )
        return upload_folder(
            Path(folder),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            keep_card=True,
            commit_message=commit_message,
        )


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
    check_repo_id(f"{organisation}/name")
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
            origin={
                "released as": f"{record.source_url} ({record.source_size:,} bytes)",
                "SHA-256 of that file": record.source_sha256,
                "converted": f"{record.date} by mixerzoo {record.mixerzoo}",
            },
            load_name=f"hf-hub:{repo_id}",
        )
        return upload_folder(Path(folder), repo_id, private=private, token=token)

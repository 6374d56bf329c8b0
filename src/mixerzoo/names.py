"""Model names: ``variant``, ``variant.tag``, ``hf-hub:organisation/name[@revision]`` and ``local-dir:path``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg

from mixerzoo import timm_registry
from mixerzoo.config import MixerConfig
from mixerzoo.errors import ConfigError, DamagedFileError, ModelNameError, did_you_mean
from mixerzoo.weights import hub
from mixerzoo.weights.files import CONFIG_FILE
from mixerzoo.weights.hub_config import HubConfig, read_hub_config
from mixerzoo.zoo import MISLABELLED, TIMM_VARIANTS, VARIANTS, WEIGHTS

_SOURCES = ("hf-hub", "local-dir")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A name, taken apart.

    Attributes:
        variant: Our architecture.
        cfg: timm's description of the weights, their source included.
        stored: Sizes of the stored weights, where a ``config.json`` says them.
    """

    variant: str
    cfg: PretrainedCfg
    stored: MixerConfig | None = None


def resolve(
    name: str,
    *,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    cache_dir: str | Path | None = None,
) -> Resolved:
    """Find out what ``name`` means; of a Hub repository the ``config.json`` is fetched.

    Args:
        name: Any name that :func:`mixerzoo.create_model` takes.
        pretrained_cfg: A tag, or a description that replaces the registered one.
        cache_dir: The Hub cache; None for huggingface_hub's own.

    Raises:
        ModelNameError: The name, tag or source does not exist.
        ConfigError: ``pretrained_cfg`` has an unknown key, or is given with a Hub or folder name.
        WeightsError: A ``config.json`` that cannot be used.
        HubError: A download failed.
    """
    source, colon, location = name.partition(":")
    if colon:
        if source not in _SOURCES:
            raise ModelNameError(
                f"{name!r}: unknown source {source!r}.{did_you_mean(source, _SOURCES)} Names are variant[.tag], "
                "hf-hub:organisation/name[@revision] or local-dir:path."
            )
        if pretrained_cfg is not None:
            raise ConfigError(f"pretrained_cfg cannot be combined with {name!r}, which brings its own config.json.")
        return _resolve_repository(location, cache_dir) if source == "hf-hub" else _resolve_folder(location)
    if isinstance(pretrained_cfg, str):
        name, pretrained_cfg = f"{name}.{pretrained_cfg}", None
    full_name = _registered_name(name)
    if isinstance(pretrained_cfg, dict):
        check_cfg_keys(pretrained_cfg, "pretrained_cfg")
        pretrained_cfg = PretrainedCfg(**pretrained_cfg)
    return Resolved(full_name.partition(".")[0], pretrained_cfg or timm.models.get_pretrained_cfg(full_name))


def check_cfg_keys(given: dict[str, Any], argument: str) -> None:
    """Raise ConfigError if a key is none of timm's ``PretrainedCfg``."""
    known = [field.name for field in dataclasses.fields(PretrainedCfg)]
    for key in given:
        if key not in known:
            raise ConfigError(f"{argument} has no entry {key!r}.{did_you_mean(key, known)}")


def _resolve_repository(repo: str, cache_dir: str | Path | None) -> Resolved:
    path = hub.fetch(repo, CONFIG_FILE, cache_dir=cache_dir)
    try:
        parsed = read_hub_config(path, f"hf-hub:{repo}")
    except DamagedFileError:
        hub.discard(path)
        raise
    # Take the weights from the same commit as the configuration: the cache's snapshot folder is named after it.
    pinned = f"{hub.split_revision(repo)[0]}@{path.parent.name}"
    return _with_source(parsed, hf_hub_id=pinned, source="hf-hub")


def _resolve_folder(location: str) -> Resolved:
    folder = Path(location).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        raise ModelNameError(
            f"local-dir:{location} is not a folder with a config.json; to load a bare weights file write "
            "create_model(variant, checkpoint_path=file)."
        )
    return _with_source(read_hub_config(folder / CONFIG_FILE, str(folder)), file=str(folder), source="local-dir")


def _with_source(parsed: HubConfig, **source: str) -> Resolved:
    return Resolved(parsed.variant, dataclasses.replace(parsed.pretrained_cfg, **source), parsed.config)


def _our_name(name: str) -> str:
    """timm's spelling of a variant (``mixer_b16_224.goog_in21k``) in ours."""
    variant, dot, tag = name.partition(".")
    return TIMM_VARIANTS.get(variant, variant) + dot + tag


def _registered_name(name: str) -> str:
    """Map timm's and mislabelled names to ours; check that variant and tag exist."""
    full_name = _our_name(name)
    if full_name in MISLABELLED:
        truth = MISLABELLED[full_name]
        timm_registry.warn_of_label(name, truth, stacklevel=5)
        return truth
    variant, dot, tag = full_name.partition(".")
    if variant not in VARIANTS:
        near = did_you_mean(variant, VARIANTS)
        hint = f" For a Hub repository write hf-hub:{name}, for a folder local-dir:{name}." if "/" in name else ""
        raise ModelNameError(f"There is no model {name!r}.{near}{hint} mixerzoo.list_models() names them all.")
    if dot and full_name not in WEIGHTS:
        tags = [row.tag for row in WEIGHTS.values() if row.variant == variant]
        listed = f"its tags are {', '.join(tags)}" if tags else "no weights were ever released for it"
        raise ModelNameError(f"{variant} has no weights tag {tag!r}; {listed}.{did_you_mean(tag, tags)}")
    return full_name


def list_models(filter: str = "", *, pretrained: bool = False) -> list[str]:
    """Names that :func:`create_model` knows, in natural order.

    Args:
        filter: Wildcards, for instance ``"*b16*"``; with a dot in it the tags are listed too (``"mixer_b16.*"``).
        pretrained: List ``variant.tag`` of every checkpoint instead of the variants.
    """
    names: list[str] = timm.list_models(
        filter,
        module=timm_registry.__name__.rpartition(".")[2],
        pretrained=pretrained,
        include_tags=pretrained or "." in filter,
    )
    return [name for name in names if name.partition(".")[0] in VARIANTS]


def is_model(name: str) -> bool:
    """Whether ``name`` is a variant, or a variant with one of its tags, in our spelling or timm's."""
    ours = _our_name(name)
    return ours in VARIANTS or ours in WEIGHTS or ours in MISLABELLED


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """timm's description of a tag (of the default tag, without one): sources, preprocessing, labels.

    Raises:
        ModelNameError: There is no such variant or tag.
    """
    return resolve(name).cfg

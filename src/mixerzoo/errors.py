"""The package's own exceptions. Every message says what was wrong, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MixerzooError(Exception):
    """Base of every error that mixerzoo raises on purpose; the command line prints its message alone."""


class ConfigError(MixerzooError, ValueError):
    """A size, flavour or recipe value that cannot be used."""


class ModelNameError(MixerzooError, ValueError):
    """A model, weight tag or source that does not exist."""


class LabelsUnknownError(MixerzooError, LookupError):
    """A model whose classes have no known names."""


class BackendError(MixerzooError, ValueError):
    """A backend that is unknown or cannot compute what it was asked for."""


class EngineError(MixerzooError, RuntimeError):
    """A model that cannot be optimized as asked, or something that an optimized model cannot do."""


class BuildError(MixerzooError, RuntimeError):
    """Code that cannot be compiled on this machine; the message is a clause."""


class InputSizeError(MixerzooError, ValueError):
    """A batch of images whose channels, height or width are not the model's."""


class WeightsError(MixerzooError, RuntimeError):
    """Weights that are absent, damaged, unsafe, or do not fit the model."""


class StorageError(MixerzooError, OSError):
    """A file or folder that cannot be written: a full disk, a missing permission."""


class DamagedFileError(WeightsError):
    """A file whose content cannot be parsed at all; a copy in the Hub cache is removed."""


class HubError(WeightsError):
    """A download that failed; the message names repository, file and remedy."""


class HubUnreachableError(HubError):
    """The server could not be reached at all (or offline mode is on) and the cache does not have the file."""


class ImageError(MixerzooError, ValueError):
    """An image file that cannot be read."""


class DataError(MixerzooError, ValueError):
    """A dataset folder that is missing, empty or inconsistent."""


class TrainingError(MixerzooError, RuntimeError):
    """A training run that cannot start, go on or be resumed."""


def listed(names: Iterable[str], *, limit: int = 3) -> str:
    """The first names in order, and how many more there are: ``"a, b, c and 5 more"``."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` for the names closest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

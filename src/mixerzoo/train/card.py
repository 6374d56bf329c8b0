"""The training card: what a finished run was, for people (``training.md``) and programs (``training.json``).

The model card, ``README.md``, says what the model is and how to load it; this one stands beside it and says how it came
about. Both files are meant to be shown around, so of paths only last names appear, and of addresses neither passwords
nor queries.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mixerzoo import __version__
from mixerzoo.atomic import write_atomically
from mixerzoo.errors import ConfigError
from mixerzoo.train.data import Data, DataName
from mixerzoo.train.machine import versions
from mixerzoo.train.recipe import Recipe, get_recipe
from mixerzoo.train.watch import finite

CARD_FILE = "training.md"
_IN_WORDS = {
    "name": "data set",
    "num_images": "training images",
    "unusable": "unusable training images",
    "world_size": "processes",
    "sharded": "sharded over the processes",
    "amp": "bfloat16 autocast",
    "compiled": "torch.compile",
    "images_seen": "images seen",
    "seconds": "training time, without evaluations",
}


def write_card(
    path: Path,
    *,
    recipe: Recipe,
    recipe_name: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
    run: Mapping[str, Any],
    evaluated_on: str = "",
) -> None:
    """Write the card to ``path``, and the same as JSON beside it (``.json``); each in one move.

    Versions, date and the command line are added.

    Args:
        path: Usually ``out_dir / CARD_FILE``.
        recipe: What was done, overrides included.
        recipe_name: The named recipe that it began as; anything else if it was none.
        data: What the model learnt from: ``name``, ``num_images``, ``classes`` (names or their number), and whatever
            else is worth saying.
        metrics: Final metrics; accuracies (``top1``, ...) as fractions.
        run: Circumstances: ``device``, ``world_size``, ``images_seen``, ``seconds``, ...
        evaluated_on: How many images, and which, the metrics are of; see :func:`evaluated_images`.

    Raises:
        StorageError: A file cannot be written.
    """
    content = {
        "recipe_name": recipe_name,
        "recipe": dataclasses.asdict(recipe),
        "overrides": _changes(recipe, _named(recipe_name)),
        "differs_from_defaults": _changes(recipe, Recipe()),
        "data": _shareable(data),
        "metrics": dict(metrics),
        "evaluated_on": evaluated_on,
        "run": _shareable(run),
        "versions": versions(),
        "command": command_line(sys.argv),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    content = finite(content)
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    markdown = _markdown(content)
    write_atomically(path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(path, lambda file: file.write_text(markdown, encoding="utf-8"))


def evaluated_images(num_images: int, recipe: Recipe, name: DataName, data: Data) -> str:
    """How many images a run was judged by, and which, in words.

    Args:
        num_images: Images that were evaluated.
        recipe: Whether they were held out of the training split.
        name: What the data was opened by.
        data: The opened data.
    """
    images = f"{num_images:,} image{'' if num_images == 1 else 's'}"
    if recipe.holdout:
        return f"{images} held out of the training split"
    if name.evaluation:
        return f"{images} of {_public(name.evaluation)}"
    folder = getattr(data.evaluation, "root", None)  # a folder of images says which split it is
    return f"{images} of the {Path(folder).name if folder else 'evaluation'} split"


def model_card_entries(
    recipe: Recipe, recipe_name: str, name: DataName, num_images: int, metrics: Mapping[str, float], evaluated_on: str
) -> dict[str, Any]:
    """What :func:`mixerzoo.save_model` writes on a trained model's card: its arguments ``origin`` and ``scores``.

    Args:
        recipe: What was done.
        recipe_name: What it is called; may be empty.
        name: What the data was opened by.
        num_images: Images of the training split.
        metrics: Final metrics; accuracies (``top1``, ...) as fractions.
        evaluated_on: How many images, and which, the metrics are of; see :func:`evaluated_images`.
    """
    origin = {
        "trained": f"by {recipe_name or 'a recipe of its own'}, see {CARD_FILE} for every setting",
        "training data": f"{_public(name.train)}, {num_images:,} images",
        "started from": recipe.model if recipe.pretrained else "random weights",
        "mixerzoo": __version__,
    }
    scores = [
        (_metric(key), round(100 * value, 2), f"{evaluated_on}; this training run")
        for key, value in metrics.items()
        if _metric(key) != key and math.isfinite(value)
    ]
    return {"origin": origin, "scores": scores}


def command_line(argv: Sequence[str]) -> str:
    """The command as one could type it, fit to be shown around."""
    program = Path(argv[0]).name if argv else ""
    program = "mixerzoo" if program in ("__main__.py", "mixerzoo") else program
    return " ".join([program, *(shlex.quote(_public(argument)) for argument in argv[1:])])


def _public(text: str) -> str:
    """The last name of an absolute path, an address without user, password and query, anything else as it is."""
    option, equals, value = text.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_public(value)}"
    if "://" in text:
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return Path(text).name if Path(text).is_absolute() and Path(text).name else text


def _shareable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _shareable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shareable(item) for item in value]
    return _public(str(value)) if isinstance(value, str | Path) else value


def _named(name: str) -> Recipe | None:
    try:
        return get_recipe(name)
    except ConfigError:
        return None


def _changes(recipe: Recipe, other: Recipe | None) -> dict[str, Any] | None:
    """The fields that differ, those of the augmentation with a dot; None if there is nothing to compare with."""
    if other is None:
        return None
    now, was = _flat(dataclasses.asdict(recipe)), _flat(dataclasses.asdict(other))
    return {name: value for name, value in now.items() if value != was[name]}


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            flat[name] = value
    return flat


def _markdown(content: Mapping[str, Any]) -> str:
    overrides = content["overrides"]
    by = f" by {content['recipe_name']}" if content["recipe_name"] else ""
    lines = [f"# Training card: {content['recipe']['model']}{by}", "", *_result(content), "", "## Recipe", ""]
    if not content["recipe_name"]:
        lines += ["A recipe of its own."]
    elif overrides is None:
        lines += [f"`{_cell(content['recipe_name'])}`, which is no recipe that comes with the package."]
    elif overrides:
        settings = " ".join(f"--set {shlex.quote(f'{name}={_plain(value)}')}" for name, value in overrides.items())
        lines += [f"`{content['recipe_name']}` with `{settings}`."]
    else:
        lines += [f"`{content['recipe_name']}` as it is."]
    lines += ["", "What differs from `Recipe()`:", "", *_table(content["differs_from_defaults"], ("field", "value"))]
    lines += ["", "<details><summary>Every field</summary>", "", "```json"]
    lines += [json.dumps(content["recipe"], indent=2, ensure_ascii=False), "```", "", "</details>"]
    data = {_in_words(name): _short(value) for name, value in content["data"].items()}
    lines += ["", "## Data", "", *_table(data, ("", ""))]
    about = {_in_words(name): _amount(name, value) for name, value in content["run"].items()}
    about |= {"date": content["date"], "command": f"`{content['command']}`"}
    lines += ["", "## Run", "", *_table(about, ("", ""))]
    lines += ["", "## Versions", "", *_table(content["versions"], ("", ""))]
    return "\n".join(lines) + "\n"


def _result(content: Mapping[str, Any]) -> list[str]:
    if not content["metrics"]:
        return ["## Result", "", "Nothing was evaluated."]
    head = f"of {content['evaluated_on']}" if content["evaluated_on"] else ""
    return ["## Result", "", *_table(_scores(content["metrics"]), ("after the last step", head))]


def _table(rows: Mapping[str, Any], heads: tuple[str, str]) -> list[str]:
    if not rows:
        return ["None."]
    return [
        f"| {heads[0]} | {_cell(heads[1])} |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(_plain(value))} |" for name, value in rows.items()),
    ]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _plain(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scores(metrics: Mapping[str, Any]) -> dict[str, str]:
    scores = {}
    for name, value in metrics.items():
        fraction = _metric(name) != name and isinstance(value, float)
        scores[_metric(name)] = f"{100 * value:.2f} %" if fraction else _plain(value)
    return scores


def _metric(name: str) -> str:
    """``top1`` as ``top-1``; anything else as it is."""
    return f"top-{name[3:]}" if name.startswith("top") and name[3:].isdecimal() else name


def _in_words(name: str) -> str:
    return _IN_WORDS.get(name, name.replace("_", " "))


def _short(value: Any) -> str:
    """Long lists by their length and first entries: a thousand class names say nothing in a table."""
    if isinstance(value, list) and len(value) > 12:
        return f"{len(value)}: {', '.join(map(str, value[:5]))}, ..."
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(map(str, value))}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else _plain(value)


def _amount(name: str, value: Any) -> str:
    if name == "seconds" and isinstance(value, int | float):
        return _duration(value)
    return _short(value)


def _duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"

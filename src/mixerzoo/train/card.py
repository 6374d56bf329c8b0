"""The training card: what a finished run was, for people (``training.md``) and programs (``training.json``).

The model card, ``README.md``, says what the model is and how to load it; this one stands beside it and says how it came
about. Both files are meant to be shown around, so of paths only last names appear, and of addresses neither passwords
nor queries.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mixerzoo.atomic import write_atomically
from mixerzoo.errors import ConfigError
from mixerzoo.train.machine import versions
from mixerzoo.train.recipe import Recipe, get_recipe
from mixerzoo.train.watch import finite

CARD_FILE = "training.md"


def write_card(
    path: Path,
    *,
    recipe: Recipe,
    recipe_name: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
    run: Mapping[str, Any],
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
    title = f"# Training card: {content['recipe']['model']} by {content['recipe_name']}"
    lines = [title, "", "## Result", "", *_table(_scores(content["metrics"]), ("metric", ""))]
    lines += ["", "## Recipe", ""]
    if overrides is None:
        lines += [f"`{_cell(content['recipe_name'])}`, which is no recipe that comes with the package."]
    elif overrides:
        settings = " ".join(f"--set {shlex.quote(f'{name}={_plain(value)}')}" for name, value in overrides.items())
        lines += [f"`{content['recipe_name']}` with `{settings}`."]
    else:
        lines += [f"`{content['recipe_name']}` as it is."]
    lines += ["", "What differs from `Recipe()`:", "", *_table(content["differs_from_defaults"], ("field", "value"))]
    lines += ["", "<details><summary>Every field</summary>", "", "```json"]
    lines += [json.dumps(content["recipe"], indent=2, ensure_ascii=False), "```", "", "</details>"]
    data = {name: _short(value) for name, value in content["data"].items()}
    lines += ["", "## Data", "", *_table(data, ("", ""))]
    about = {name: _amount(name, value) for name, value in content["run"].items()}
    about |= {"date": content["date"], "command": f"`{content['command']}`"}
    lines += ["", "## Run", "", *_table(about, ("", ""))]
    lines += ["", "## Versions", "", *_table(content["versions"], ("", ""))]
    return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, Any], heads: tuple[str, str]) -> list[str]:
    if not rows:
        return ["None."]
    return [
        f"| {heads[0]} | {heads[1]} |",
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
        fraction = name.startswith("top") and isinstance(value, float)
        scores[f"top-{name[3:]}" if fraction else name] = f"{100 * value:.2f} %" if fraction else _plain(value)
    return scores


def _short(value: Any) -> str:
    """Long lists by their length and first entries: a thousand class names say nothing in a table."""
    if isinstance(value, list) and len(value) > 12:
        return f"{len(value)}: {', '.join(map(str, value[:5]))}, ..."
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(map(str, value))}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _plain(value)


def _amount(name: str, value: Any) -> str:
    if name == "seconds" and isinstance(value, int | float):
        hours, rest = divmod(round(value), 3600)
        return f"{value:,.0f} ({hours} h {rest // 60:02} min)"
    return _short(value)

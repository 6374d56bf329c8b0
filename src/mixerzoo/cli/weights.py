"""``mixerzoo convert``, ``mixerzoo verify`` and ``mixerzoo push``."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import typer

from mixerzoo.config import Gelu
from mixerzoo.conversion import convert
from mixerzoo.errors import ConfigError, MixerzooError
from mixerzoo.factory import WeightSource
from mixerzoo.inference.verify import Verification, verify
from mixerzoo.publish import push_folder, push_official


def convert_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="A Flax archive (.npz), or a timm state dict (.safetensors, .pth).")
    ],
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    model: Annotated[
        str | None, typer.Option(help="What the file holds: a variant, or a tag. Recognised by its shapes otherwise.")
    ] = None,
    act: Annotated[
        Gelu | None,
        typer.Option(help="GELU flavour; otherwise the tag's, else tanh for Flax archives and erf for state dicts."),
    ] = None,
    img_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width, where the patch grid is not square.")
    ] = None,
) -> None:
    """Convert a checkpoint into a folder that local-dir: names load, here and in timm."""
    found = convert(checkpoint, folder, model=model, act=act, img_size=img_size)
    typer.echo(f"{found.variant}, {found.config.act} GELU ({found.act_reason}): local-dir:{folder}")


def verify_command(
    names: Annotated[list[str], typer.Argument(help="Models with weights, for instance mixer_b16.goog_in1k.")],
    source: Annotated[
        WeightSource | None, typer.Option(help="The Hub's copy, or the one converted from the Flax file.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Hash the weights in the cache, load them, and compare what they compute with float64.

    Exit status 1 if anything is wrong.
    """
    results = [_verify_and_show(name, source, json_output) for name in names]  # the others go on past a bad one
    if not all(results):
        raise typer.Exit(1)


def _verify_and_show(name: str, source: WeightSource | None, json_output: bool) -> bool:
    try:
        found = verify(name, source=source)
    except MixerzooError as error:
        if json_output:
            typer.echo(json.dumps({"name": name, "problem": str(error)}))
        else:
            typer.echo(f"error: {error}", err=True)
        return False
    typer.echo(_as_json(found) if json_output else _as_text(found))
    return found.problem is None


def _as_json(found: Verification) -> str:
    measured = {"block_error": found.block_error, "logits_error": found.logits_error}
    errors = {name: error if math.isfinite(error) else None for name, error in measured.items()}  # NaN is no JSON
    return json.dumps(dataclasses.asdict(found) | errors | {"problem": found.problem}, default=str)


def _as_text(found: Verification) -> str:
    file = found.file
    said = "nobody announced one" if file.expected is None else f"as {file.authority} says"
    said = f"NOT {said}" if file.expected not in (None, file.sha256) else said
    lines = [
        f"{found.name}: {'ok' if found.problem is None else found.problem}",
        f"  file             {file.path}",
        f"  SHA-256          {file.sha256} ({said})",
        f"  from             {file.origin}",
    ]
    if file.origin_sha256 != file.sha256:
        lines.append(f"  its SHA-256      {file.origin_sha256}")
    errors = f"layers {found.block_error:.1e}, logits {found.logits_error:.1e}"
    lines.append(f"  against float64  {errors} (relative, {found.act} GELU)")
    return "\n".join(lines)


def push_command(
    folder: Annotated[Path | None, typer.Argument(help="A folder that convert or train wrote.")] = None,
    repository: Annotated[str | None, typer.Argument(help="organisation/name")] = None,
    all_official: Annotated[
        str | None, typer.Option(metavar="ORGANISATION", help="Upload every official tag that the Hub does not have.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="An existing branch; otherwise the main one.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub (log in with `hf auth login` first)."""
    if all_official is not None:
        if folder is not None:
            raise ConfigError("--all-official converts and uploads on its own: leave folder and repository out.")
        for name, address in push_official(all_official, private=private):
            typer.echo(f"{name}: {address}")
    elif folder is None or repository is None:
        raise ConfigError("Say what to upload where: mixerzoo push FOLDER ORGANISATION/NAME.")
    else:
        typer.echo(push_folder(folder, repository, private=private, revision=revision))

"""``mixerzoo list`` and ``mixerzoo info``."""

from __future__ import annotations

from typing import Annotated

import typer

from mixerzoo import names
from mixerzoo.zoo import DEFAULT_TAGS, VARIANTS, WEIGHTS, WeightTag


def list_command(
    filter: Annotated[str, typer.Argument(help="Wildcards, for instance '*b16*'.")] = "",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="List every released checkpoint.")] = False,
) -> None:
    """List models, or released checkpoints with --pretrained."""
    found = names.list_models(filter, pretrained=pretrained)
    if not found:
        typer.echo(f"No model matches {filter!r}.", err=True)
        raise typer.Exit(1)
    width = max(map(len, found))
    for name in found:
        variant, _, tag = name.partition(".")
        row = WEIGHTS.get(name)
        if row is not None:
            star = " (default)" if DEFAULT_TAGS[variant] == tag else ""
            typer.echo(f"{name:{width}}  {row.num_classes:>6} classes  {_where(row)}{star}")
        else:
            config = VARIANTS[variant].config
            tags = sum(row.variant == variant for row in WEIGHTS.values())
            typer.echo(
                f"{name:{width}}  {config.num_parameters / 1e6:6.1f} M parameters  {config.multiply_adds / 1e9:7.2f} G "
                f"multiply-adds  {tags} released weights"
            )


def info_command(
    name: Annotated[str, typer.Argument(help="Any model name, for instance mixer_b16 or mixer_b16.goog_in1k.")],
) -> None:
    """Show sizes, sources, licence and published scores."""
    resolved = names.resolve(name)
    variant = VARIANTS[resolved.variant]
    config = resolved.stored or variant.config
    rows, columns = config.grid_size
    height, width = config.image_hw
    lines = [
        f"{variant.name}: {variant.title}",
        f"  image            {height} x {width} pixels, {config.in_chans} channels",
        f"  patches          {config.patch_size} pixels, {rows} x {columns} = {config.num_tokens} tokens",
        f"  layers           {config.depth}",
        f"  channels         {config.embed_dim}",
        f"  MLP widths       {config.tokens_mlp_dim} across tokens, {config.channels_mlp_dim} across channels",
        f"  parameters       {config.num_parameters:,} with {config.num_classes} classes",
        f"  multiply-adds    {config.multiply_adds:,} an image",
    ]
    if resolved.stored is not None:
        lines += [f"  GELU             {config.act}", f"  source           {name}"]
        typer.echo("\n".join(lines))
        return
    if variant.note:
        lines.append(f"  note             {variant.note}")
    tags = [row for row in WEIGHTS.values() if row.variant == variant.name]
    if "." in name:
        tags = [row for row in tags if row.tag == resolved.cfg.tag]
    for row in tags:
        lines += ["", *_tag_lines(row)]
    if not tags:
        lines += ["", f"No released weights. Variants that have some: {', '.join(DEFAULT_TAGS)}."]
    typer.echo("\n".join(lines))


def _tag_lines(row: WeightTag) -> list[str]:
    default = " (default)" if DEFAULT_TAGS[row.variant] == row.tag else ""
    lines = [
        f"{row.name}{default}",
        f"  {row.description}",
        f"  source           {_where(row)}",
        f"  licence          {row.license}",
        f"  classes          {row.num_classes} ({row.label_set})",
        f"  GELU             {row.act}",
        f"  preprocessing    {row.interpolation}, crop {row.crop_pct}, mean {row.mean[0]}, std {row.std[0]}",
    ]
    if row.npz_url and row.hub_id:
        lines.append(f"  original         {row.npz_url}")
    lines += [f"  {score.metric:<16} {score.percent:g} %  [{score.source}]" for score in row.scores]
    return lines if row.scores else [*lines, "  scores           none published that we know of"]


def _where(row: WeightTag) -> str:
    if row.asset:
        return "in the package"
    if row.hub_id:
        return f"https://huggingface.co/{row.hub_id}"
    return f"{row.npz_url} (converted once)"

"""What a run leaves behind: a JSON file with every race as soon as it is finished, and a chart at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from mixerzoo.atomic import write_atomically
from mixerzoo.bench.race.chart import draw
from mixerzoo.bench.race.results import RaceResult
from mixerzoo.bench.race.targets import Target
from mixerzoo.bench.workers.serving import plain
from mixerzoo.errors import ConfigError


class Report:
    """Results of a run in a folder.

    Args:
        out: The folder.
        stem: Name of the files without their suffix.
        about: Circumstances of the run.

    Raises:
        ConfigError: The folder holds results of that name, or cannot be written.
    """

    def __init__(self, out: Path, stem: str, about: Mapping[str, Any]):
        self.results: list[RaceResult] = []
        self._path, self._about = out / f"{stem}.json", dict(about)
        self._more: dict[str, Any] = {}
        if self._path.exists():
            raise ConfigError(f"{self._path} holds the results of an earlier run: give another folder with --out.")
        try:
            self._write()
        except OSError as error:
            raise ConfigError(f"{error} Give another folder with --out.") from None

    def add(self, result: RaceResult) -> None:
        """Take a race in; it is on disk when this returns."""
        self.results.append(result)
        self._write()

    def add_left(self, titles: Sequence[str]) -> None:
        """Take in the titles of races for which there was no time."""
        self.note(left=[*self._more.get("left", []), *titles])

    def note(self, **more: Any) -> None:
        """Take in what is no race: figures by name, plain or a dataclass."""
        self._more |= {name: asdict(value) if is_dataclass(value) else value for name, value in more.items()}  # type: ignore[arg-type]
        self._write()

    def finish(self, say: Callable[[str], object], targets: Sequence[Target] = ()) -> None:
        """Say and write how the targets fared, draw the chart, and say where everything is.

        Args:
            say: Receives each line.
            targets: What the run was for.
        """
        if targets:
            self.note(targets=[asdict(target) | {"verdict": target.verdict} for target in targets])
            say("targets")
            for target in targets:
                say(f"  {target}")
        say(f"written to {self._path}")
        charts: dict[str, list[RaceResult]] = {}
        for result in self.results:
            if any(lane.counts for lane in result.lanes):
                charts.setdefault(result.lanes[0].entry.dtype, []).append(result)
        for dtype, results in charts.items():
            suffix = f"-{dtype}.png" if len(charts) > 1 else ".png"
            say(draw(results, self._about, self._path.with_name(self._path.stem + suffix)))

    def _write(self) -> None:
        races = [result.as_plain() for result in self.results]
        everything = plain({"circumstances": self._about, **self._more, "races": races})
        text = json.dumps(everything, indent=1, default=str)
        write_atomically(self._path, lambda path: path.write_text(text + "\n"))

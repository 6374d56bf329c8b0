"""``python -m mixerzoo``: the command line without an installed script."""

import sys

try:
    from mixerzoo.cli import main
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    sys.exit(
        "error: The command line needs typer (`pip install typer`); the GPU suite also runs without it: "
        "python -m mixerzoo.bench.gpu --help"
    )

if __name__ == "__main__":
    main()

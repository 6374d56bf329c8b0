"""``python -m mixerzoo``: the command line without an installed script."""

from mixerzoo.cli import main

if __name__ == "__main__":
    main()

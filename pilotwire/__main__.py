"""``python -m pilotwire``: the same as the command ``pilotwire``."""

from pilotwire.cli import main

if __name__ == "__main__":
    main()

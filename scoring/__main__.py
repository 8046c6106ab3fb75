"""``python -m scoring``."""

from scoring.cli import main

# Worker processes import this module again under another name: they must not start over.
if __name__ == "__main__":
    main()

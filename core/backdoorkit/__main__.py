"""``python -m backdoorkit``: the same as the command ``backdoorkit``."""

from __future__ import annotations

from backdoorkit.cli import main

if __name__ == "__main__":
    main()

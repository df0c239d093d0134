"""`python -m netstack`: the same as the `netstack` command."""

from __future__ import annotations

from netstack.cli import main

if __name__ == "__main__":
    main()

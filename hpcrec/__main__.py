"""``python -m hpcrec`` is ``hpcrec``."""

from __future__ import annotations

from hpcrec.cli.main import main

if __name__ == "__main__":
    main()

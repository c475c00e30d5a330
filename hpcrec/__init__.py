"""hpcrec: distributed reconstruction for computational microscopy, from diffraction patterns to atoms."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]

"""Error reduction, ER: alternating projections."""

from __future__ import annotations

from hpcrec.engines.projections import ProjectionEngine


class ErrorReduction(ProjectionEngine):
    """ψ ← A Qψ (Fienup, Appl. Opt. 21, 2758 (1982)); never lets the error grow, and stops at the nearest minimum."""

    def numbers(self) -> tuple[float, float, float]:
        """Return (0, 1, 1)."""
        return 0.0, 1.0, 1.0

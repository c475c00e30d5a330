"""Relaxed averaged alternating reflections, RAAR."""

from __future__ import annotations

from hpcrec.engines.projections import ProjectionEngine, ProjectionOptions
from hpcrec.options import options


@options
class RaarOptions(ProjectionOptions):
    """Options of RAAR, beside those of the projection engines.

    relaxation : β between ½ and 1; 1 is the difference map
    """

    relaxation: float = 0.75


class Raar(ProjectionEngine):
    """ψ ← β ½ (R_A R_Q + 1) ψ + (1 − β) Qψ, reflectors R = 2P − 1 (Luke, Inverse Probl. 21, 37 (2005)).

    Written out: ψ ← βψ + (1 − 2β) Qψ + βA(2Qψ − ψ).
    """

    Options = RaarOptions
    _options: RaarOptions

    def numbers(self) -> tuple[float, float, float]:
        """Return (1 − 2β, β, 2)."""
        return 1 - 2 * self._options.relaxation, self._options.relaxation, 2.0

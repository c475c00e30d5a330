"""The difference map, DM."""

from __future__ import annotations

from hpcrec.engines.projections import ProjectionEngine, ProjectionOptions
from hpcrec.options import options


@options
class DifferenceMapOptions(ProjectionOptions):
    """Options of the difference map, beside those of the projection engines.

    relaxation : β; 1 is the difference map of ptychography, smaller values relax it
    noise_share : as in all projection engines; the difference map needs more of it, since it never comes to rest where
        noise leaves no common point of both sets
    """

    relaxation: float = 1.0
    noise_share: float = 0.75


class DifferenceMap(ProjectionEngine):
    """ψ ← ψ + β (A(2Qψ − ψ) − Qψ) (Thibault et al., Science 321, 379 (2008), with β = 1).

    With reflectors R = 2P − 1 and β = 1: ψ ← ½ (1 + R_A R_Q) ψ. Here β < 1 shortens the step; it is not the β of
    Elser's general difference map, whose estimates change with it too.
    """

    Options = DifferenceMapOptions
    _options: DifferenceMapOptions

    def numbers(self) -> tuple[float, float, float]:
        """Return (−β, β, 2)."""
        return -self._options.relaxation, self._options.relaxation, 2.0

"""Averaged relaxed projections."""

from __future__ import annotations

from hpcrec.engines.projections import ProjectionEngine, ProjectionOptions
from hpcrec.options import options


@options
class RelaxedAverageOptions(ProjectionOptions):
    """Options of averaged relaxed projections, beside those of the projection engines.

    relaxation : λ; 1 projects, 2 reflects
    """

    relaxation: float = 1.8


class RelaxedAverage(ProjectionEngine):
    """ψ ← ½ (P_Q^λ + P_A^λ) ψ with relaxed projections P^λ = 1 + λ (P − 1).

    The method of averaged projections (Luke, Burke and Lyon, SIAM Rev. 44, 169 (2002)), relaxed: both projections
    start from the same wave, so that neither set of data has the last word; slow and steady.
    """

    Options = RelaxedAverageOptions
    _options: RelaxedAverageOptions

    def numbers(self) -> tuple[float, float, float]:
        """Return (λ/2, λ/2, 0)."""
        return 0.5 * self._options.relaxation, 0.5 * self._options.relaxation, 0.0

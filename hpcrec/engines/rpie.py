"""The regularised ptychographic iterative engine, rPIE: ePIE that moves dim places faster."""

from __future__ import annotations

from hpcrec.engines.epie import Epie, EpieOptions
from hpcrec.options import options


@options
class RpieOptions(EpieOptions):
    """Options of rPIE: those of ePIE with smaller regularity.

    object_regularity, probe_regularity : γ of the denominators (1−γ) W + γ max(W, I)
    """

    object_regularity: float = 0.1
    probe_regularity: float = 0.5


class Rpie(Epie):
    """rPIE (Maiden, Johnson and Li, Optica 4, 736 (2017)): the formulas of :class:`hpcrec.engines.epie.Epie`, γ < 1.

    Serial with ``batch_size = 1``; the batch form is that of ePIE.
    """

    Options = RpieOptions

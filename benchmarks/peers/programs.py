"""Who is compared, with which algorithm, batch size and step.

"whole": hpcrec takes the nearest pixels in all sweeps, as PtyLab does.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = ("ss128", "mm128", "ms128", "ss256")


@dataclass(frozen=True, kw_only=True)
class Program:
    """One line of the comparison; ``batch`` and ``step`` of 0 leave the choice to the program."""

    peer: str
    algorithm: str
    batch: int = 0
    step: float = 0.0
    sets: tuple[str, ...] = ALL

    def __str__(self) -> str:
        return f"{self.peer} {self.algorithm}" + (f", {self.batch}" if self.batch else "")


ONE_SLICE, THICK = ("ss128", "mm128", "ss256"), ("ms128",)
# Steps and batches were chosen by a short scan on ss128 and ms128 (two to four values each, three sweeps); hpcrec's and
# PtyLab's mPIE are their own defaults
PROGRAMS = (
    Program(peer="hpcrec", algorithm="epie"),
    Program(peer="hpcrec", algorithm="gradient"),
    Program(peer="hpcrec", algorithm="mpie"),
    Program(peer="hpcrec", algorithm="lsqml"),
    Program(peer="hpcrec", algorithm="epie whole"),
    Program(peer="hpcrec", algorithm="gradient whole"),
    Program(peer="ptylab", algorithm="ePIE", step=1.0, sets=ONE_SLICE),
    Program(peer="ptylab", algorithm="mPIE", sets=ONE_SLICE),
    Program(peer="ptylab", algorithm="e3PIE", sets=THICK),
    Program(peer="quantem", algorithm="adam", batch=64, step=0.05, sets=ONE_SLICE),
    Program(peer="quantem", algorithm="adam", batch=16, step=0.02, sets=THICK),
    Program(peer="phaserem", algorithm="adam", batch=16, step=0.05, sets=ONE_SLICE),
    Program(peer="phaserem", algorithm="adam", batch=16, step=0.01, sets=THICK),
    Program(peer="ptyrad", algorithm="adam", batch=32, step=0.03, sets=ONE_SLICE),
    Program(peer="ptyrad", algorithm="adam", batch=32, step=0.01, sets=THICK),
    Program(peer="py4dstem", algorithm="gradient", batch=16, step=1.0, sets=ONE_SLICE),
    Program(peer="py4dstem", algorithm="gradient", batch=16, step=0.5, sets=THICK),
)

"""Who is compared, with which algorithm, batch size and step."""

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


PROGRAMS = (
    Program(peer="hpcrec", algorithm="epie"),
    Program(peer="hpcrec", algorithm="gradient"),
    Program(peer="hpcrec", algorithm="lsqml"),
    Program(peer="ptylab", algorithm="ePIE", sets=("ss128", "mm128", "ss256")),
    Program(peer="ptylab", algorithm="mPIE", sets=("ss128", "mm128", "ss256")),
    Program(peer="ptylab", algorithm="e3PIE", sets=("ms128",)),
)

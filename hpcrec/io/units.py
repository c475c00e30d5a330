"""Units of lengths, energies and frequencies as files spell them; everything becomes Å, eV and 1/Å here."""

from __future__ import annotations

from typing import Final

from scipy import constants

from hpcrec.errors import DataError

LENGTHS: Final = {
    "pm": 1e-2,
    "a": 1.0,
    "å": 1.0,
    "ang": 1.0,
    "angstrom": 1.0,
    "angstroms": 1.0,
    "nm": 10.0,
    "nanometer": 10.0,
    "um": 1e4,
    "µm": 1e4,
    "micron": 1e4,
    "micrometer": 1e4,
    "mm": 1e7,
    "millimeter": 1e7,
    "cm": 1e8,
    "m": 1e10,
    "meter": 1e10,
    "metre": 1e10,
}
ENERGIES: Final = {"ev": 1.0, "kev": 1e3, "mev": 1e6, "gev": 1e9, "j": 1 / constants.e, "joule": 1 / constants.e}
FREQUENCIES: Final = {
    "1/a": 1.0,
    "1/å": 1.0,
    "a^-1": 1.0,
    "angstrom^-1": 1.0,
    "å^-1": 1.0,
    "a-1": 1.0,
    "1/nm": 0.1,
    "nm^-1": 0.1,
    "1/m": 1e-10,
    "m^-1": 1e-10,
}
ANGLES_MRAD: Final = {"mrad": 1.0, "rad": 1e3, "urad": 1e-3, "µrad": 1e-3}


def unit_of(text: str, table: dict[str, float], where: str) -> float:
    """Return how much a unit is of the table's first choice; raises :class:`DataError` for an unknown one."""
    factor = table.get(plain_unit(text))
    if factor is None:
        raise DataError(f"{where}: the unit {text!r} is unknown; expected one of {', '.join(table)}")
    return factor


def plain_unit(text: str) -> str:
    """Return a unit without the ways to write it: case, blanks, LaTeX marks, the two micro signs."""
    plain = text.strip().lower().replace("μ", "µ")
    for mark in (" ", "$", "{", "}", "_", "[", "]"):
        plain = plain.replace(mark, "")
    return plain

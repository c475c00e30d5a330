import pytest

from hpcrec.errors import DataError
from hpcrec.io.units import ANGLES_MRAD, ENERGIES, FREQUENCIES, LENGTHS, unit_of


@pytest.mark.parametrize(
    ("text", "table", "expected"),
    [
        ("A", LENGTHS, 1.0),
        ("Å", LENGTHS, 1.0),
        ("\u03bcm", LENGTHS, 1e4),  # Greek mu
        ("\u00b5m", LENGTHS, 1e4),  # micro sign
        ("[n_m]", LENGTHS, 10.0),
        ("keV", ENERGIES, 1e3),
        ("J", ENERGIES, 1 / 1.602176634e-19),
        ("A^{-1}", FREQUENCIES, 1.0),
        ("1 / nm", FREQUENCIES, 0.1),
        ("mrad", ANGLES_MRAD, 1.0),
    ],
)
def test_spellings(text, table, expected):
    assert unit_of(text, table, "file") == pytest.approx(expected)


def test_an_unknown_unit_names_the_place():
    with pytest.raises(DataError, match="file: distance: the unit 'inch' is unknown"):
        unit_of("inch", LENGTHS, "file: distance")

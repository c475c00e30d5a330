"""The orientation doctor on measured data, whose axis signs are written in the data folder's README."""

import os
from pathlib import Path

import pytest

from hpcrec.run.config import read_job_file
from hpcrec.run.orient import examine

DATA = Path(os.environ.get("HPCREC_DATA", "../shared/data"))
NEAR_FIELD = DATA / "measured" / "xray_nfptycho_petra_p25" / "PETRAIII_P25_Near_Field_Ptycho.cxi"
JOB = """
version = 1
name = "petra"
[data]
format = "hdf5"
path = "{path}"
patterns = "entry_1/instrument_1/detector_1/data"
positions = "entry_1/sample_1/geometry_1/translation"
position_unit = "meter"
mask = "entry_1/instrument_1/detector_1/mask"
mask_good = "zero"
pixel_size_angstrom = 1786.6
[beam]
kind = "photon"
energy_ev = 12657.9
[probe]
source = "patterns"
[detector]
field = "near"
distance_angstrom = 3.638e7
"""


@pytest.mark.slow
@pytest.mark.skipif(not NEAR_FIELD.exists(), reason=f"no measured data at {NEAR_FIELD}; set HPCREC_DATA")
def test_the_near_fields_axes_are_found(tmp_path):
    """Columns as stored are (x, y, z): the doctor must swap them, and neither sign. Wrong axes err twice as much."""
    job = tmp_path / "petra.toml"
    job.write_text(JOB.format(path=NEAR_FIELD.resolve()))
    found = examine(read_job_file(job, ["data.flip_position_x=true"]), n_positions=120, iterations=6)
    assert found.sure == "certain"
    assert found.lead.ratio > 1.5
    assert found.block["data"] == {
        "position_columns": [1, 0],
        "flip_position_y": False,
        "flip_position_x": False,
        "scan_rotation_deg": pytest.approx(0, abs=1.5),
    }

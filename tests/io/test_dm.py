"""DigitalMicrograph files, written here tag by tag; files of another writer (nionswift-io) gave equal values."""

import os
import struct

import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError, HpcrecError
from hpcrec.io.base import open_series
from hpcrec.io.dm import DmOptions

PATTERNS = np.random.default_rng(21).integers(1, 200, (2, 12, 8, 6)).astype(np.uint16)


class Dm4Writer:
    """Writes the tags of a .dm4 file: groups are dicts, text and arrays are leaves."""

    KINDS = {"u2": 4, "u4": 5, "f4": 6, "f8": 7}

    def group(self, tags):
        body = b"".join(self.tag(name, value) for name, value in tags)
        return struct.pack(">BBQ", 0, 0, len(tags)) + body

    def tag(self, name, value):
        if isinstance(value, list):
            kind, content = 20, self.group(value)
        else:
            kind, content = 21, b"%%%%" + self.leaf(value)
        return struct.pack(">BH", kind, len(name)) + name.encode() + struct.pack(">Q", len(content)) + content

    def leaf(self, value):
        if isinstance(value, str):
            value = np.frombuffer(value.encode("utf-16-le"), "<u2")
        kind = self.KINDS[value.dtype.str[1:]]
        if value.ndim == 0:
            return struct.pack(">QQ", 1, kind) + value.tobytes()
        return struct.pack(">QQQQ", 3, 20, kind, value.size) + value.tobytes()

    def file(self, tags):
        content = self.group(tags)
        return struct.pack(">IQI", 4, len(content) + 24, 1) + content + bytes(8)


def write_dm4(path, patterns, axes, voltage=200e3):
    """``axes``: (scale, origin, unit) of each axis of ``patterns``, slowest first."""
    dimensions = [("", [("Origin", np.float32(o)), ("Scale", np.float32(s)), ("Units", u)]) for s, o, u in axes[::-1]]
    brightness = [("Origin", np.float32(0)), ("Scale", np.float32(1)), ("Units", "")]
    data = [
        ("Calibrations", [("Brightness", brightness), ("Dimension", dimensions)]),
        ("Data", patterns.ravel()),
        ("DataType", np.uint32(10)),
        ("Dimensions", [("", np.uint32(n)) for n in patterns.shape[::-1]]),
        ("PixelDepth", np.uint32(2)),
    ]
    tags = [("Microscope Info", [("Voltage", np.float32(voltage))])]
    image = [("ImageData", data), ("ImageTags", tags), ("Name", "scan")]
    path.write_bytes(Dm4Writer().file([("ImageList", [("", image)]), ("InImageMode", np.uint32(1))]))


CUBE = PATTERNS.reshape(4, 6, 8, 6)
AXES = [(0.5, 0, "nm"), (0.4, 0, "nm"), (0.8, 3, "mrad"), (0.8, 2, "mrad")]


@pytest.fixture
def dm4(tmp_path):
    pytest.importorskip("rsciio")
    return tmp_path / "scan.dm4"


def test_dm4_cube(dm4):
    write_dm4(dm4, CUBE, AXES)
    with open_series(DmOptions(path=dm4)) as series:
        np.testing.assert_array_equal(series.read_frames(0, np.arange(24)), CUBE.reshape(24, 8, 6))
        assert series.energy_ev == pytest.approx(200e3)
        assert series.detector_sampling[0] == pytest.approx(0.8e-3 / 0.0250793, rel=1e-5)
        assert series.facts.frame.centre == (3, 2)
        positions = series.tilt(0).positions.reshape(4, 6, 2)
        np.testing.assert_allclose(positions[1, 1] - positions[0, 0], [5, 4], rtol=1e-6)  # stored in single precision
    with pytest.raises(DataError, match="energy_ev is 200000 by the file and 300000 by the job"):
        open_series(DmOptions(path=dm4, energy_ev=300e3))


def test_dm4_with_the_scan_as_fast_axes(dm4):
    """Some versions write the scan inside the pattern; the units tell."""
    write_dm4(dm4, np.ascontiguousarray(CUBE.transpose(2, 3, 0, 1)), [*AXES[2:], *AXES[:2]])
    with open_series(DmOptions(path=dm4)) as series:
        np.testing.assert_array_equal(series.read_frames(0, np.array([23, 5])), CUBE.reshape(24, 8, 6)[[23, 5]])
        assert series.facts.frame.centre == (3, 2)


def test_dm4_stack_without_calibration_and_faults(dm4):
    write_dm4(dm4, PATTERNS[0], [(1, 0, ""), (1, 0, ""), (1, 0, "")])
    given = {"path": dm4, "detector_pixel_mrad": 0.8, "scan_step_angstrom": (1, 1)}
    with open_series(DmOptions(scan_shape=(3, 4), **given)) as series:
        np.testing.assert_array_equal(series.read_frames(0, np.arange(12)), PATTERNS[0])
    with pytest.raises(ConfigError, match="neither the shape of the scan nor positions"):
        open_series(DmOptions(**given))
    write_dm4(dm4, PATTERNS[0, 0], [(1, 0, ""), (1, 0, "")])
    with pytest.raises(DataError, match="no stack of patterns"):
        open_series(DmOptions(**given))
    write_dm4(dm4, CUBE, AXES)
    os.truncate(dm4, 1200)
    with pytest.raises(DataError, match="ends before|no sound"):
        open_series(DmOptions(**given))
    dm4.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no sound DigitalMicrograph file"):
        open_series(DmOptions(**given))


def test_dm4_tags_that_cannot_be_are_named(dm4):
    write_dm4(dm4, CUBE[:0], AXES)
    with pytest.raises(DataError, match=r"holds an image of \(0, 6, 8, 6\) pixels"):
        open_series(DmOptions(path=dm4))
    write_dm4(dm4, CUBE, [*AXES[:3], (0.8, np.nan, "mrad")])
    with pytest.raises(DataError, match="the tag Origin is nan, expected a number"):
        open_series(DmOptions(path=dm4))
    write_dm4(dm4, CUBE, AXES[:3])
    with pytest.raises(DataError, match="3 calibrations for 4 axes"):
        open_series(DmOptions(path=dm4))


def test_dm4_damage_anywhere_ends_in_one_sentence(dm4):
    """The bytes of tags, one after the other, become what a broken copy may leave; some change nothing that is read."""
    write_dm4(dm4, CUBE[:2, :2], AXES)
    sound = dm4.read_bytes()
    first = sound.index(CUBE[:2, :2].tobytes())
    tags = [*range(first), *range(first + CUBE[:2, :2].nbytes, len(sound))]
    faults = 0
    for place in tags[::5]:
        dm4.write_bytes(sound[:place] + b"\xff" + sound[place + 1 :])
        try:
            open_series(DmOptions(path=dm4, ignore_in_file=["energy"], energy_ev=3e5)).close()
        except HpcrecError:
            faults += 1
    assert faults > len(tags) // 20

"""Event files in the layout of stempy 3; the files it wrote itself gave equal patterns."""

import tracemalloc

import h5py
import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.events import EventOptions


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


def write_events(path, places, per_place=1, scan=(3, 4)):
    """Random events of frames of 8×6 pixels; returns the dense sum (place, 8, 6)."""
    rng = np.random.default_rng(12)
    dense = np.zeros((scan[0] * scan[1], 48), int)
    lists = [rng.permutation(48)[: rng.integers(1, 20)].astype(np.uint32) for _ in range(len(places) * per_place)]
    for i, events in enumerate(lists):
        dense[places[i // per_place]][events] += 1
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("electron_events/frames", len(lists), h5py.vlen_dtype(np.uint32))
        for i, events in enumerate(lists):
            frames[i] = events
        frames.attrs.update({"Nx": 8, "Ny": 6})
        file["electron_events/scan_positions"] = np.array(places)
        file["electron_events/scan_positions"].attrs.update({"Nx": scan[1], "Ny": scan[0]})
    return dense.reshape(-1, 8, 6)


GIVEN = {"scan_step_angstrom": (0.5, 0.5), "detector_pixel_inverse_angstrom": 0.05}


@pytest.mark.parametrize("per_place", [1, 3])
def test_events_become_dense_where_they_are_asked_for(tmp_path, per_place):
    path = tmp_path / "events.h5"
    dense = write_events(path, list(range(12)), per_place)
    with open_series(EventOptions(path=path, **GIVEN)) as series:
        read = series.tilt(0).read(np.array([11, 2, 2, 0]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(dense[[11, 2, 2, 0]], axes=(1, 2)))
        assert read.dtype == np.uint16
        assert series.facts.from_file == ("scan_shape",)


def test_places_recorded_never_or_twice(tmp_path):
    """Places 1 and 6 are missing, 4 was recorded twice, and rows are not in the scan's order."""
    path = tmp_path / "events.h5"
    places = [3, 0, 4, 2, 4, 5, 11, 10, 9, 8, 7]
    dense = write_events(path, places)
    recorded = [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    with open_series(EventOptions(path=path, **GIVEN)) as series:
        np.testing.assert_array_equal(stored(series), dense[recorded])
        row, column = np.divmod(recorded, 4)
        expected = np.stack([row - 1.0, column - 1.5], axis=1) * 0.5
        np.testing.assert_allclose(series.tilt(0).positions, expected)
    with pytest.raises(ConfigError, match="give data.scan_step_angstrom"):
        open_series(EventOptions(path=path, detector_pixel_inverse_angstrom=0.05))


def test_event_faults(tmp_path):
    path = tmp_path / "events.h5"
    write_events(path, [0, 1, 2, 12], scan=(4, 4))
    with h5py.File(path, "r+") as file:
        file["electron_events/scan_positions"].attrs["Ny"] = 3
    with pytest.raises(DataError, match="leads outside the scan of 3×4"):
        open_series(EventOptions(path=path, **GIVEN))
    write_events(path, list(range(12)))
    with h5py.File(path, "r+") as file:
        file["electron_events/frames"][5] = np.array([48], np.uint32)
    with (
        open_series(EventOptions(path=path, **GIVEN)) as series,
        pytest.raises(DataError, match=r"events\.h5: positions 5…5: an event lies at pixel 48 of 48"),
    ):
        series.tilt(0).read(np.array([5]))
    with h5py.File(path, "r+") as file:
        file["electron_events/frames"].attrs["Ny"] = 0
    with pytest.raises(DataError, match="expected sizes of 1…16384"):
        open_series(EventOptions(path=path, **GIVEN))
    with h5py.File(path, "w") as file:
        file["electron_events/frames"] = np.zeros(12)
    with pytest.raises(DataError, match="does not hold lists of integers"):
        open_series(EventOptions(path=path, **GIVEN))


def test_event_tables_of_two_axes_need_one_row_a_place(tmp_path):
    """Six places for three rows of four lists: a whole number of lists a place, but not these rows."""
    path = tmp_path / "events.h5"
    for n_places in (2, 6):
        with h5py.File(path, "w") as file:
            frames = file.create_dataset("electron_events/frames", (3, 4), h5py.vlen_dtype(np.uint32))
            for i in np.ndindex(3, 4):
                frames[i] = np.arange(5, dtype=np.uint32)
            frames.attrs.update({"Nx": 8, "Ny": 6})
            file["electron_events/scan_positions"] = np.arange(n_places)
            file["electron_events/scan_positions"].attrs.update({"Nx": n_places, "Ny": 1})
        with pytest.raises(DataError, match=rf"holds {n_places} values of int64 for \(3, 4\) lists of events"):
            open_series(EventOptions(path=path, **GIVEN))


def test_an_event_before_the_first_pixel_is_named(tmp_path):
    path = tmp_path / "events.h5"
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("electron_events/frames", 2, h5py.vlen_dtype(np.int32))
        frames[0], frames[1] = np.array([3], np.int32), np.array([7, -1], np.int32)
        frames.attrs.update({"Nx": 8, "Ny": 6})
        file["electron_events/scan_positions"] = np.arange(2)
        file["electron_events/scan_positions"].attrs.update({"Nx": 2, "Ny": 1})
    with (
        open_series(EventOptions(path=path, **GIVEN)) as series,
        pytest.raises(DataError, match="an event lies at pixel -1 of 48"),
    ):
        series.tilt(0).read(np.array([1]))


def test_lists_of_events_never_outgrow_the_frames(tmp_path):
    """256 frames of 48 pixels with 4000 events each: 24 kB dense, lists of 4 MB, of which 64 are there at once."""
    path, rng = tmp_path / "events.h5", np.random.default_rng(3)
    lists = rng.integers(0, 48, (256, 4000)).astype(np.uint32)
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("electron_events/frames", 256, h5py.vlen_dtype(np.uint32))
        for i, events in enumerate(lists):
            frames[i] = events
        frames.attrs.update({"Nx": 8, "Ny": 6})
        file["electron_events/scan_positions"] = np.arange(256)
        file["electron_events/scan_positions"].attrs.update({"Nx": 16, "Ny": 16})
    with open_series(EventOptions(path=path, **GIVEN)) as series:
        read = stored(series)
        tracemalloc.start()
        stored(series)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (read.reshape(256, 48) == [np.bincount(events, minlength=48) for events in lists]).all()
    assert peak < 2.5 * 64 * 4000 * 4

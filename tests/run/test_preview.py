"""Pictures of direct methods from a job: the right positions, probe and notes reach the method."""

import numpy as np
import pytest
from oriented import write_oriented
from scipy.ndimage import gaussian_filter

from hpcrec.direct.orientation import Orientation
from hpcrec.errors import ConfigError
from hpcrec.run import preview
from hpcrec.run.config import load_job
from hpcrec.run.preview import METHODS, make_preview


@pytest.fixture
def job_file(tmp_path):
    return write_oriented(tmp_path, Orientation())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_shows_the_particle_bright(method, job_file):
    job, _ = load_job(job_file, ["probe.astigmatism_angstrom=15", "probe.astigmatism_angle_deg=17.2"])
    shown = make_preview(job, method)
    assert np.isfinite(shown.image).all()
    if method in ("wdd", "icom"):
        assert shown.image.shape == (11, 12)
        assert shown.sampling == pytest.approx((1.0, 1.0))
    # One cell of 8 Å in the middle of a field of 11 Å; atoms are bright
    smooth = gaussian_filter(shown.image, 1.0 / shown.sampling[0])
    ny, nx = smooth.shape
    middle = smooth[ny // 4 : -(ny // 4), nx // 4 : -(nx // 4)]
    edge = np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]])
    assert middle.max() > edge.max()
    assert middle.max() > 0


def test_the_order_of_the_scan_does_not_matter(job_file, tmp_path):
    job, _ = load_job(job_file)
    rows = make_preview(job, "ssb").image
    patterns, positions = np.load(tmp_path / "patterns.npy"), np.load(tmp_path / "positions.npy")
    columns = np.arange(132).reshape(11, 12).T.ravel()
    np.save(tmp_path / "patterns.npy", patterns[columns])
    np.save(tmp_path / "positions.npy", positions[columns])
    assert np.allclose(make_preview(load_job(job_file)[0], "ssb").image, rows, atol=1e-6)


def test_a_large_scan_is_cut_to_its_middle(job_file, monkeypatch):
    # Counts, signals and their spectrum
    monkeypatch.setattr(preview, "PATTERN_BYTES", 132 * 32 * 32 * (2 + 4 + 8) // 4)
    job, _ = load_job(job_file)
    shown = make_preview(job, "ssb")
    assert shown.image.shape == (5 * 5, 6 * 5)  # pixels of 0.2 Å
    assert shown.sampling == pytest.approx((0.2, 0.2))
    assert shown.notes == ("the middle 5 × 6 of 11 × 12 positions",)


def test_parallax_says_what_it_measured(job_file):
    job, _ = load_job(job_file)
    (note, *others) = make_preview(job, "parallax").notes
    defocus = float(note.split("defocus ")[1].split(" Å")[0])
    assert defocus == pytest.approx(60, rel=0.1)
    assert others == []


def test_what_cannot_be_shown_is_refused(job_file, tmp_path):
    near = ["detector.field=near", "detector.distance_angstrom=1e6"]
    with pytest.raises(ConfigError, match="near field"):
        make_preview(load_job(job_file, near)[0], "icom")
    with pytest.raises(ConfigError, match="choose one of parallax, ssb"):
        make_preview(load_job(job_file)[0], "sbb")
    positions = np.load(tmp_path / "positions.npy")
    np.save(tmp_path / "positions.npy", positions + np.random.default_rng(0).normal(0, 0.4, positions.shape))
    with pytest.raises(ConfigError, match="use the parallax method"):
        make_preview(load_job(job_file)[0], "wdd")

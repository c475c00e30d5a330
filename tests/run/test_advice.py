"""What hpcrec would choose: from optics, partial coherence, memory and the scan, for values that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcrec.data.dataset import TiltSeries
from hpcrec.errors import ConfigError
from hpcrec.io.base import open_series
from hpcrec.run.advice import Advice, advise, probe_diameter
from hpcrec.run.config import load_job
from hpcrec.run.optics import mode_count, slice_count, slice_thickness
from hpcrec.run.plan import make_plan
from hpcrec.run.start import common_grid, starting_probe, tilt_setup


@pytest.fixture
def series(tiny_job: Path) -> Iterator[TiltSeries]:
    with open_series(load_job(tiny_job)[0].data) as opened:
        yield opened


def advice(path: Path, series: TiltSeries, name: str, *changes: str) -> Advice:
    (found,) = (a for a in advise(load_job(path, changes)[0], series) if a.name == name)
    return found


def test_slices_follow_the_depth_of_field(tiny_job: Path, series: TiltSeries) -> None:
    """λ/θ² of 200 keV and 30 mrad: 0.02508 Å / 9e-4 = 27.9 Å."""
    auto = ["ptychography.slice_thickness_angstrom=auto", "ptychography.sample_thickness_angstrom=100"]
    for changes in ([*auto, "ptychography.slices=auto"], [*auto, "ptychography.slices=4"], auto[1:]):
        job, _ = load_job(tiny_job, changes)
        assert slice_thickness(job) == pytest.approx(27.87, abs=0.01)
        assert slice_count(job, 1, 0.0) == 4
    assert "27.9 Å" in advice(tiny_job, series, "slices").why
    one = ["ptychography.slices=1", "ptychography.sample_thickness_angstrom=100"]
    assert advice(tiny_job, series, "slices", *one).better == "'auto'"
    assert advice(tiny_job, series, "slices", one[1]).better == ""
    coarse = ["ptychography.slices=2", "ptychography.slice_thickness_angstrom=40"]
    assert "28 or less" in advice(tiny_job, series, "slices", *coarse).better
    assert advice(tiny_job, series, "slices", coarse[0], "ptychography.slice_thickness_angstrom=20").better == ""


def test_a_list_of_slices_goes_by_the_numbers_of_the_data(tiny_job: Path) -> None:
    """So that a tilt left out shifts no other one's."""
    changes = ["ptychography.slices=[1, 2, 3]", "ptychography.slice_thickness_angstrom=4", "data.drop_tilts=[0]"]
    job, _ = load_job(tiny_job, changes)
    with open_series(job.data) as series:
        assert tilt_setup(job, series, 1, common_grid(job, series)).n_slices == 3
    with pytest.raises(ConfigError, match="3 numbers, but there is a tilt 3"):
        slice_count(job, 3, 0.0)


def test_auto_thickness_needs_an_aperture(tiny_job: Path) -> None:
    changes = ["ptychography.slices=2", "ptychography.slice_thickness_angstrom=auto", "probe.source=patterns"]
    tiny_job.write_text(tiny_job.read_text().replace("semiangle_mrad = 30.0\n", ""))
    with pytest.raises(ConfigError, match=r"'auto' needs probe\.semiangle_mrad"):
        load_job(tiny_job, changes)


def test_an_automatic_thickness_runs(tiny_job: Path, hpcrec: Callable[..., int], tmp_path: Path) -> None:
    changes = ["slices=2", "slice_thickness_angstrom=auto", "iterations=1"]
    sets = [part for c in changes for part in ("--set", f"ptychography.{c}")]
    assert hpcrec("run", tiny_job, "--out", tmp_path / "out", "--until", "ptychography", *sets) == 0


def test_modes_are_counted_where_the_coherence_is_known(tiny_job: Path, series: TiltSeries) -> None:
    assert "source_sigma_angstrom" in advice(tiny_job, series, "probe.modes").why
    sharp = ["probe.source_sigma_angstrom=0.02", "probe.modes=1"]
    assert advice(tiny_job, series, "probe.modes", *sharp).better == ""
    few = advice(tiny_job, series, "probe.modes", "probe.source_sigma_angstrom=0.3", "probe.modes=1")
    auto, _ = load_job(tiny_job, ["probe.source_sigma_angstrom=0.3"])
    assert int(few.better) == mode_count(auto) == len(starting_probe(auto, series, 1)) > 3
    assert mode_count(load_job(tiny_job)[0]) == 1
    assert advice(tiny_job, series, "probe.modes", "probe.source_sigma_angstrom=0.3", "probe.modes=30").better == ""


def test_a_batch_is_told_by_its_updates(tiny_job: Path, series: TiltSeries) -> None:
    n = max(len(p) for p in series.facts.positions)
    assert f" {-(-n // 5)} updates" in advice(tiny_job, series, "batch_size", "ptychography.batch_size=5").why
    assert " 1 updates" in advice(tiny_job, series, "batch_size", "ptychography.batch_size=5000").why


def test_overlap_and_counts(tiny_job: Path, series: TiltSeries) -> None:
    near = advice(tiny_job, series, "overlap")
    assert "steps of 1.6 Å" in near.why
    focused = advice(tiny_job, series, "overlap", "probe.defocus_angstrom=0")
    assert int(focused.now.rstrip("%")) < int(near.now.rstrip("%"))
    assert "60%" in focused.better
    large = advice(tiny_job, series, "probe", "probe.defocus_angstrom=500")
    assert "larger than its window" in large.why
    assert advice(tiny_job, series, "counts").better == ""


def test_a_coarse_start_must_hold_the_bright_field(tiny_job: Path, series: TiltSeries) -> None:
    """32 pixels are few: half of them is never advised; half of them to 1.25 1/Å hold 30 mrad = 1.2 1/Å, but not 32."""
    assert advice(tiny_job, series, "coarse_iterations").better == ""
    make_plan(load_job(tiny_job, ["ptychography.coarse_iterations=3"])[0], series, 1)
    with pytest.raises(ConfigError, match="beyond the detector"):
        make_plan(load_job(tiny_job, ["ptychography.coarse_iterations=3", "probe.semiangle_mrad=32"])[0], series, 1)


def test_the_diameter_of_a_known_disc() -> None:
    """A disc of radius 20 pixels holds nine tenths of its power within √0.9 of it."""
    y, x = np.mgrid[:64, :64] - 30
    disc = (np.hypot(y, x) <= 20).astype(complex)[None]
    assert probe_diameter(disc, (0.5, 0.5)) == pytest.approx(20 * np.sqrt(0.9), rel=0.03)


def test_check_shows_the_choices(
    tiny_job: Path, hpcrec: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert hpcrec("check", tiny_job) == 0
    text = capsys.readouterr().out
    assert "Choices" in text
    assert "depth of field" in text
    assert "overlap" in text

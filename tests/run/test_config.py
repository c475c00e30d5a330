"""Job files: everything wrong is said at once, with the nearest right key."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from hpcrec.engines import ENGINES, engine_class
from hpcrec.errors import ConfigError
from hpcrec.run.config import changed_keys, check_job, fingerprint, job_text, load_job, read_job_file
from hpcrec.run.job import PtychographySection

GOOD = """
version = 1
name = "test"
[data]
format = "hdf5"
path = "data.h5"
patterns = "diffraction"
[beam]
energy_ev = 200e3
[probe]
semiangle_mrad = 20.0
[ptychography]
engine = "gradient"
iterations = 7
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_good_job_becomes_typed_sections(tmp_path: Path) -> None:
    job, raw = load_job(write(tmp_path, GOOD))
    assert job.ptychography.engine == "gradient"
    assert job.ptychography.iterations == 7
    assert job.data.patterns == "diffraction"
    assert job.tomography is None
    assert raw["data"]["path"] == str(tmp_path / "data.h5")


def test_paths_count_from_the_job_file_and_overrides_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert read_job_file(path)["data"]["path"] == str(tmp_path / "data.h5")
    assert read_job_file(path, ["data.path=other.h5"])["data"]["path"] == str(elsewhere / "other.h5")


def test_paths_expand_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD.replace("data.h5", "${SAMPLES}/data.h5"))
    monkeypatch.setenv("SAMPLES", str(tmp_path / "samples"))
    assert read_job_file(path)["data"]["path"] == str(tmp_path / "samples" / "data.h5")
    monkeypatch.delenv("SAMPLES")
    with pytest.raises(ConfigError, match="SAMPLES is not set"):
        read_job_file(path)
    path = write(tmp_path, GOOD.replace("data.h5", "${SAMPLES:-fallback}/data.h5"))
    assert read_job_file(path)["data"]["path"] == str(tmp_path / "fallback" / "data.h5")


def test_overrides_are_toml_values(tmp_path: Path) -> None:
    overrides = [
        "data.tilts=[17, 18]",
        "ptychography.iterations=10",
        "ptychography.engine=lsqml",
        "parallel.exchange=tiled",
    ]
    job, _ = load_job(write(tmp_path, GOOD), overrides)
    assert job.data.tilts == [17, 18]
    assert job.ptychography.iterations == 10
    assert job.ptychography.engine == "lsqml"
    assert job.parallel.exchange == "tiled"


@pytest.mark.parametrize("text", ["ptychography.iterations", "=3", "a b=3"])
def test_an_override_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_job(write(tmp_path, GOOD), [text])


def test_all_faults_are_listed_with_suggestions(tmp_path: Path) -> None:
    text = GOOD.replace("iterations = 7", "iteratons = 7\nbatch_size = -1").replace(
        '"diffraction"', '"diffraction"\npositons = "p"'
    )
    text = text.replace("semiangle_mrad = 20.0", "semiangle_mrad = 'wide'") + "[tomografy]\n"
    with pytest.raises(ConfigError) as caught:
        load_job(write(tmp_path, text))
    message = str(caught.value)
    assert "data.positons: unknown key; did you mean 'positions'?" in message
    assert "ptychography.iteratons: unknown key; did you mean 'iterations'?" in message
    assert "tomografy: unknown key; did you mean 'tomography'?" in message
    assert "probe.semiangle_mrad" in message
    assert "4 faults" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("ptychography.iterations=0", "ptychography.iterations: must be 1 or more"),
        ("ptychography.slices=3", "slice_thickness_angstrom: missing"),
        ("ptychography.slices=auto", "sample_thickness_angstrom: missing"),
        ("ptychography.engine=magic", "ptychography.engine"),
        ("name='a/b'", "name: use"),
        ("data.format=excel", "no reader 'excel'"),
        ("version=2", "version"),
        ("parallel.group_size=0", "group_size"),
        ("parallel.halo_cut=0.5", "parallel.halo_cut: must lie between 0 and 0.1 .0: whole windows., got 0.5"),
        ("parallel.halo_cut=-1e-4", "parallel.halo_cut: must lie between 0 and 0.1"),
        ("parallel.balance=fair", "parallel.balance"),
        ("tomography.alignment.rounds=[3]", "same number of entries"),
        ("tomography.resire.relaxation=5", "between 0 and 2"),
        ("tomography.binning=0", "tomography.binning: must be 1 or more"),
        ("tomography.fista.sparsity=-1", "sparsity: must be 0 or more"),
        ("ptychography.seed=-1", "seed: must be 0 or more"),
        ("probe.semiangle_mrad=-3", "must be positive"),
        ("data.energy_ev=80e3", "differ"),
        ("detector.field=near", "needs detector.distance_angstrom"),
        ("detector.flight_points=3", "flight_angstrom: missing"),
        ("refine.tilt.start_iteration=3", "refine.tilt: needs ptychography.slices of 2"),
        ("refine.affine.share=0.5", "add .refine.positions."),
        ("refine.positions.start_iteration=-1", "start_iteration: must be 0 or more"),
        ("refine.positions={start_iteration = 5, stop_iteration = 5}", "stop_iteration: must be above start_iteration"),
        ("refine.positions.max_move_angstrom=-1", "refine.positions.max_move_angstrom: must be 0 or more"),
        ("refine.annealing={stop_iteration = 9, trials = 0}", "refine.annealing.trials: must be 1 or more"),
        ("refine.variable_probe.modes=0", "refine.variable_probe.modes: must be 1 or more"),
        ("refine.intensity.largest_factor=0", "largest_factor: must be 1 or more"),
        ("ptychography.epie.object_step=-0.5", "ptychography.epie.object_step: must be 0 or more"),
        ("ptychography.lbfgs.history=0", "ptychography.lbfgs.history: must be 1 or more"),
        ("detector.saturation_counts=0", "saturation_counts: must be positive"),
        ("ptychography.slice_thickness_angstrom=-2", "slice_thickness_angstrom: must be positive"),
        ("ptychography.sample_thickness_angstrom=0", "sample_thickness_angstrom: must be positive"),
        ("tomography.field_angstrom=[10, -1]", "field_angstrom: must be 0 or more, got -1"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, change: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_job(write(tmp_path, GOOD), [change])


@pytest.mark.parametrize("text", ["version = ", "\x00"])
def test_a_file_that_is_not_toml_is_said_to_be_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not a valid TOML"):
        load_job(write(tmp_path, text))


def test_a_missing_job_file_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no job file"):
        load_job(tmp_path / "absent.toml")


def test_the_frozen_text_reads_back_the_same(tmp_path: Path) -> None:
    job, raw = load_job(write(tmp_path, GOOD))
    again, raw_again = load_job(write(tmp_path, job_text(raw)))
    assert raw_again == raw
    assert again == job


def test_fingerprints_follow_the_sections_that_matter(tmp_path: Path) -> None:
    raw = read_job_file(write(tmp_path, GOOD))
    other = {**raw, "parallel": {"group_size": 2}}
    later = {**raw, "tomography": {"binning": 2}}
    assert fingerprint(raw, "ptychography") == fingerprint(other, "ptychography") == fingerprint(later, "ptychography")
    assert fingerprint(raw, "tomography") != fingerprint(later, "tomography")


def test_changed_keys_name_old_and_new() -> None:
    assert changed_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 → 3"]


def test_checking_needs_a_data_section() -> None:
    with pytest.raises(ConfigError, match="data.format: missing"):
        check_job({"version": 1, "name": "x"})


@pytest.mark.parametrize("slices", ["3", "[1, 2]", "auto"])
def test_projections_refuse_slices_and_small_batches(tmp_path: Path, slices: str) -> None:
    overrides = [f"ptychography.slices={slices}", "ptychography.slice_thickness_angstrom=5", "ptychography.engine=raar"]
    with pytest.raises(ConfigError, match="'raar' is made for one slice"):
        load_job(write(tmp_path, GOOD), overrides)
    with pytest.raises(ConfigError, match="'raar' takes all patterns at once; leave it at 0"):
        load_job(write(tmp_path, GOOD), ["ptychography.engine=raar", "ptychography.batch_size=8"])
    for name in ("centre", "positive_phase", "probe_power"):
        with pytest.raises(ConfigError, match=f"constraints.{name}: the exit waves of the engine 'raar', "):
            load_job(write(tmp_path, GOOD + f"[constraints.{name}]\n"), ["ptychography.engine=raar"])


def test_every_engine_can_be_chosen() -> None:
    """The key's choices are the table's, and each has a section of its own options."""
    hints = typing.get_type_hints(PtychographySection)
    assert set(typing.get_args(hints["engine"])) == set(ENGINES)
    for name in ENGINES:
        assert hints[name] is engine_class(name).Options


def test_a_volume_needs_one_object_state(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a volume needs one object state"):
        load_job(write(tmp_path, GOOD + "[tomography]\n"), ["ptychography.object_states=2"])
    assert load_job(write(tmp_path, GOOD), ["ptychography.object_states=2"])[0].ptychography.object_states == 2


def test_positions_are_refined_after_sweeps_on_whole_pixels(tmp_path: Path) -> None:
    text = GOOD + "[refine.positions]\nstart_iteration = 3\n"
    load_job(write(tmp_path, text), ["ptychography.whole_pixel_iterations=3"])
    with pytest.raises(ConfigError, match=r"refine\.positions\.start_iteration: must be 4 or more"):
        load_job(write(tmp_path, text), ["ptychography.whole_pixel_iterations=4"])

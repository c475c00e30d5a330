"""The benchmark of one GPU, rehearsed without one, and what it says of times, goals and programs that are missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, engines, kernels, nanocube, sanitizer
from benchmarks.gpu.bench import FULL, REHEARSED, Bench, Case
from hpcrec.data.specimen import specimen_from_atoms
from hpcrec.engines import ENGINES
from hpcrec.io.atoms import write_xyz

ROOT = Path(__file__).parents[2]
RATES = ("patterns/s", "kernels alone/s", "predicted", "over its transforms", "transforms/s", "TB/s")


@pytest.fixture
def bench(cupy, tmp_path, monkeypatch):
    """A run on the stand-in, of which only parts are asked for."""
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: Pool, raising=False)
    return Bench(cupy=cupy, sizes=FULL, about={}, seconds=1000.0, path=tmp_path / "found.json")


class Pool:
    """CuPy's pool as far as it is asked for."""

    @staticmethod
    def free_all_blocks():
        """Nothing is kept."""


@pytest.mark.emulation
@pytest.mark.slow
def test_every_part_is_rehearsed(tmp_path):
    """The command as it will be typed, on the smallest sizes; it prints and writes no speed."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the GPU kernels' sources cannot be compiled for the CPU")
    path = tmp_path / "rehearsed.json"
    asked = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--json", str(path)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(REHEARSED.upper()) == 2
    found = json.loads(path.read_text())
    assert found["rehearsal"] == REHEARSED
    assert found["failed"] == {}
    tables = found["tables"]
    assert {row["kernel"] for row in tables["correctness"]} == {"fused", "striped", "array", "cuFFT passes"}
    measured = ("transforms by cuFFT", "sums of patches", "gradients", "striped kernels by chunk")
    for name in ("correctness", "engines", "kernels for compute-sanitizer", *measured):
        assert tables[name], name
    for rows in tables.values():
        assert all(row.get(name) is None for row in rows for name in RATES)
    assert any("nanocube" in what for what in found["left"])


def test_the_table_is_the_whole_one():
    cases = {case[:3] for case in FULL.timed}
    assert cases == {(n, s, m) for n in (64, 128, 256) for s in (1, 5, 20) for m in (1, 4)}
    assert {case.shifted for case in FULL.timed} == {False, True}
    assert len(FULL.timed) == 2 * len(cases)
    # No speed without a check: each window that is timed is checked, whole and shifted, one mode and more
    for n in (64, 128, 256):
        assert {case.shifted for case in FULL.checked if case.n == n} == {False, True}
    assert FULL.engines == tuple(ENGINES)
    assert FULL.iterations == 10


def test_what_is_wrong_is_not_timed():
    right = {**Case(64, 2, 1, False)._asdict(), "kernel": "fused", "obj": 1e-6, "illumination": 1e-6, "spectrum": 1e-6}
    right |= {"shifts": None, "loss": 1e-7}
    rows = [right, right | {"kernel": "striped"}, right | {"kernel": "striped", "obj": float("nan")}]
    assert correctness.found_right(rows) == {("fused", 64)}
    assert len(correctness.wrong(rows)) == 1
    assert correctness.found_right([right | {"loss": 2e-5}]) == set()
    ended = {"engine": "epie", "slices": 1, "obj": 1e-6, "probe": 1e-6, "data error": 1e-6}
    assert engines.wrong([ended]) == []
    assert len(engines.wrong([ended, ended | {"probe": float("nan")}])) == 1


def test_an_error_is_kept_and_the_rest_goes_on(bench, capsys):
    def rows(bench):
        yield {"a": 1}
        with bench.guarded("the second"):
            yield {"a": 2 / 0}
        yield {"a": 3}
        raise RuntimeError("no more")

    bench.part("some", rows)
    assert [row["a"] for row in bench.tables["some"]] == [1, 3]
    assert set(bench.failed) == {"some", "the second"}
    assert json.loads(bench.path.read_text())["failed"] == bench.failed


def test_what_has_no_time_is_named(bench):
    bench.seconds = 0.0
    bench.part("some", lambda bench: pytest.fail("there is no time"))
    assert bench.left == ["some"]
    assert bench.tables == {}


def test_goals_stand_beside_what_was_measured(bench):
    row = {**Case(128, 5, 1, False)._asdict(), "kernel": "fused", "patterns/s": 1e6}
    bench.tables["gradients"] = [row, row | {"kernel": "cuFFT passes", "patterns/s": 5e5}]
    found = {line["goal"]: line for line in command.goals(bench)}
    assert found["fused 128², 5 slices, patterns/s"]["met"] == "yes"
    assert found["fused 128², 5 slices, over cuFFT passes"] == {
        "goal": "fused 128², 5 slices, over cuFFT passes", "wanted": 3.0, "measured": 2.0, "met": "no"
    }  # fmt: skip
    assert found["striped 256², 5 slices, patterns/s"]["measured"] == "not measured"


def test_predictions_are_those_of_the_design(bench):
    assert kernels.predicted(bench, "fused", Case(128, 5, 4, False)) == 260e3
    assert kernels.predicted(bench, "fused", Case(128, 5, 1, True)) is None
    assert kernels.predicted(bench, "array", Case(128, 5, 1, False)) is None


def test_atoms_are_compared_by_their_places():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 50, (40, 3))
    wanted = specimen_from_atoms(np.repeat([27, 8], 20), places)
    near = specimen_from_atoms(np.repeat([27, 8], 20), places + 0.01)
    assert nanocube.agreement(near, wanted)["without a partner"] == 0
    exchanged = specimen_from_atoms(np.repeat([8, 27], 20), places)
    assert nanocube.agreement(exchanged, wanted)["without a partner"] == 80
    fewer = specimen_from_atoms(np.repeat([27, 8], [20, 19]), places[:-1])
    row = nanocube.agreement(fewer, wanted)
    assert (row["atoms"], row["atoms on the CPU"], row["without a partner"]) == (39, 40, 1)
    assert nanocube.wrong([{"device": "gpu", "seconds": 1.0}, row]) == ["1 atoms differ"]


@pytest.mark.parametrize("known", [True, False])
def test_a_nanocube_of_either_device(bench, tmp_path, monkeypatch, known):
    asked, atoms = [], specimen_from_atoms([27, 8], np.eye(3)[:2])
    write_xyz(tmp_path / "atoms.xyz", atoms)

    def run(device, out, most):
        asked.append(device)
        out.mkdir()
        write_xyz(out / "atoms.xyz", atoms)
        return 1.0

    monkeypatch.setattr(nanocube, "run", run)
    rows = list(nanocube.rows(bench, tmp_path / "atoms.xyz" if known else None))
    assert asked == (["gpu"] if known else ["gpu", "cpu"])
    assert rows[-1]["without a partner"] == 0
    assert nanocube.wrong(rows) == []


def test_a_missing_nanocube_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCREC_DATA", str(tmp_path))
    assert "set HPCREC_DATA" in nanocube.data_fault()


@pytest.mark.parametrize(("status", "outcome"), [(0, "clean"), (9, "faults found"), (1, "could not run (exit 1)")])
def test_a_sanitizers_word_is_passed_on(monkeypatch, tmp_path, bench, capsys, status, outcome):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found, said = sanitizer.check("racecheck", 20.0)
    assert found == outcome
    assert "--tool racecheck" in said
    assert "benchmarks.gpu.sanitized" in said
    rows = list(sanitizer.rows(bench))
    assert [row["tool"] for row in rows] == list(sanitizer.TOOLS)
    assert bool(sanitizer.wrong(rows)) == (status != 0)


def test_without_a_gpu_a_sentence_is_said():
    code = (
        "import sys; sys.modules['cupy'] = None; sys.argv = ['gpu']; from benchmarks.gpu.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "install hpcrec[gpu]" in done.stderr
    assert "--rehearse" in done.stderr
    assert "Traceback" not in done.stderr

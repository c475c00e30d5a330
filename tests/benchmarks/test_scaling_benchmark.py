"""The benchmark of scaling: what is counted, the model's arithmetic, and that each part runs on the smallest case."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import counting, invariance, measure, plots, predict, ranks, seams, traffic
from benchmarks.scaling.counting import CountingCommunicator, reduction_bytes, reduction_messages
from benchmarks.scaling.model import PARTS, Load, Rates, batch_imbalance, layout, sweep_seconds, tiles, tilt_seconds
from benchmarks.scaling.model import traffic as modelled
from benchmarks.scaling.problem import Work, jittered, problem, reconstruct
from hpcrec.geometry.tiles import Box, tile_layout
from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.parallel.exchange import EXCHANGES

ROOT = Path(__file__).parents[2]
LOAD = Load(
    name="some",
    tilts=3,
    scan=(40, 40),
    step=5.0,
    window=32,
    slices=2,
    modes=1,
    batch=200,
    pattern_bytes=1024.0,
    jitter=1.0,
)
RATES = Rates(patterns=1e3, pixel_seconds=1e-8, bandwidth=1e9, latency=1e-5, packing=1e-4)

launched = pytest.mark.skipif(not ranks.LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")


def talk(comm):
    """Use everything once; return results, ledger and rank."""
    counted = CountingCommunicator(comm)
    a = np.full(10, float(counted.rank))
    found = {"sum": counted.sum(a), "max": counted.max(a[:4])}
    found["broadcast"] = counted.broadcast(np.arange(3) if counted.rank == 0 else None)
    found["gather"] = counted.gather(counted.rank)
    buffer = np.zeros(5)
    following, before = (counted.rank + 1) % counted.size, (counted.rank - 1) % counted.size
    counted.swap({following: np.full(5, float(counted.rank))}, {before: buffer})
    found["swap"] = buffer
    counted.send("word", following, 3)
    found["receive"] = counted.receive(before, 3)
    counted.barrier()
    return found, counted.ledger, counted.rank


@pytest.mark.parametrize("size", [2, 3, 5])
def test_results_pass_and_bytes_are_counted(size):
    for found, ledger, rank in run_ranks(size, talk):
        np.testing.assert_array_equal(found["sum"], np.full(10, sum(range(size))))
        np.testing.assert_array_equal(found["max"], np.full(4, size - 1.0))
        np.testing.assert_array_equal(found["broadcast"], np.arange(3))
        np.testing.assert_array_equal(found["swap"], np.full(5, (rank - 1) % size))
        assert found["gather"] == (list(range(size)) if rank == 0 else None)
        assert found["receive"] == "word"
        counts = ledger.counts
        assert {kind: count.calls for kind, count in counts.items()} == dict.fromkeys(counts, 1)
        assert counts["sum"].sent == counts["sum"].received == pytest.approx(2 * (size - 1) / size * 80)
        assert counts["sum"].payload == 80
        assert counts["max"].sent == pytest.approx(2 * (size - 1) / size * 32)
        assert counts["sum"].messages == 2 * int(np.ceil(np.log2(size)))
        assert (counts["swap"].sent, counts["swap"].received, counts["swap"].messages) == (40, 40, 1)
        assert (counts["broadcast"].sent > 0) == (rank == 0)
        assert (counts["broadcast"].received > 0) == (rank != 0)
        assert (counts["gather"].received > 0) == (rank == 0)
        assert counts["send"].sent == counts["receive"].received > 0
        assert all(count.seconds >= 0 for count in counts.values())
    sent = sum(ledger.total("sent", "swap") for _, ledger, _ in run_ranks(size, talk))
    assert sent == 40 * size


def test_one_rank_sends_nothing():
    counted = CountingCommunicator(SerialCommunicator())
    counted.sum(np.ones(100))
    counted.max(np.ones(100))
    counted.broadcast(np.ones(100))
    counted.gather(np.ones(100))
    counted.swap({0: np.ones(4)}, {0: np.empty(4)})
    counted.send("word", 0)
    assert counted.receive() == "word"
    assert counted.ledger.total("sent") == counted.ledger.total("received") == counted.ledger.total("messages") == 0
    assert counted.ledger.total("calls") == 7


def test_parts_count_in_the_same_ledger():
    def work(comm):
        counted = CountingCommunicator(comm)
        part = counted.split(counted.rank % 2)
        part.duplicate().sum(np.ones(6))
        return part.size, counted.ledger.counts["sum"]

    for size, count in run_ranks(4, work):
        assert size == 2
        assert count.calls == 1
        assert count.sent == reduction_bytes(48, 2) == 48
    assert (reduction_messages(1), reduction_messages(2), reduction_messages(5)) == (0, 2, 6)


def test_waiting_is_timed(monkeypatch):
    """On a clock that goes on by 0.3 s once rank 1 has begun to wait for rank 0."""
    clock, waits = [0.0], threading.Event()
    monkeypatch.setattr(counting.time, "perf_counter", lambda: clock[0])

    def work(comm):
        counted = CountingCommunicator(comm)
        if comm.rank == 0:
            assert waits.wait(60)
            clock[0] = 0.3
        else:
            real = comm.sum
            comm.sum = lambda a: (waits.set(), real(a))[1]
        counted.sum(np.ones(1))
        return counted.ledger.counts["sum"].seconds

    assert run_ranks(2, work) == [0.0, 0.3]


def test_any_box_of_the_object_can_be_made_alone():
    given = problem(16, jittered((4, 4), 0.9), n_slices=2)
    whole = given.truth(Box(0, 300, 0, 200))
    np.testing.assert_array_equal(given.truth(Box(90, 210, 30, 50)), whole[:, 90:210, 30:50])
    patterns = given.patterns(np.arange(16))
    np.testing.assert_array_equal(given.patterns(np.array([7, 3])), patterns[[7, 3]])
    noisy = replace(given, noise=True)
    np.testing.assert_array_equal(noisy.patterns(np.array([7, 3])), noisy.patterns(np.arange(16))[[7, 3]])
    box = Box(0, given.grid.shape[0], 0, given.grid.shape[1])
    state = given.state(given.truth(box), box)
    # Rounded to counts, and single precision
    np.testing.assert_allclose(given.model.simulate(state, np.arange(16)), patterns, atol=0.51, rtol=1e-5)


def test_invariance_sees_a_difference():
    rows = list(invariance.rows(["gradient"], [invariance.CASES[2]], ["double"], sweeps=2))
    assert {row["exchange"] for row in rows} == set(EXCHANGES)
    assert all(row[""] == "" and row["7 ranks"] is not None and row["2 ranks"] is None for row in rows)
    work = Work(sweeps=2)
    given = problem(16, jittered((4, 4), 0.9))
    alone = run_ranks(1, lambda comm: reconstruct(given, work, comm))[0]
    other = replace(alone, obj=alone.obj + 1e-3 * np.abs(alone.obj).max(), positions=1.01 * alone.positions)
    found = invariance.compare(other, alone, given.illumination())
    assert found["object"] == pytest.approx(1e-3, rel=1e-3)
    assert found["lit"] == pytest.approx(1e-3, rel=1e-3)
    assert found["positions"] == pytest.approx(1e-2)
    assert found["probe"] == 0
    row = invariance._row("gradient", invariance.CASES[0], "single", "tiled", {3: found}, alone.errors)
    assert row[""] == "EXCEEDS"


def test_cases_are_what_they_say():
    by_name = {case.name: case for case in invariance.CASES}
    assert by_name["uneven tiles"].ranks == (2, 3, 4, 5, 7)
    assert by_name["batch of 2"].batch < min(by_name["batch of 2"].ranks)
    assert len(by_name["empty shares"].positions) < min(by_name["empty shares"].ranks)
    given = problem(16, by_name["uneven tiles"].positions)
    cores = tile_layout(given.positions, given.grid, (16, 16), 4, 3).cores
    areas = [core.shape[0] * core.shape[1] for core in cores]
    assert max(areas) > 2 * min(areas)
    # Round-off, of single precision or double, divides what is dark from what is lit
    dark = by_name["dark edges"]
    light = problem(dark.n, dark.positions, taper=dark.taper).illumination()
    assert (light < 1e-10 * light.max()).any()


def test_seams_are_found_where_they_are():
    given = seams.standard(12)
    cores = run_ranks(4, lambda comm: seams._core(given, comm))
    near, rest = seams.regions(given, cores)
    assert near.any()
    assert rest.any()
    assert not (near & rest).any()
    truth = given.truth(Box(0, given.grid.shape[0], 0, given.grid.shape[1]))
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(truth.shape)
    assert seams.error_ratio(given, truth + noise, near, rest)[0] == pytest.approx(1, abs=0.1)
    assert seams.error_ratio(given, truth + noise * (1 + 0.3 * near), near, rest)[0] == pytest.approx(1.3, abs=0.13)
    width = seams.probe_width(given)
    # Inside the scan, left of the border in the middle
    y, x = cores[0].y1, given.grid.shape[1] // 2 - width - 5
    assert near[y - width : y + width, x].all()
    assert not near[[y - width - 1, y + width], x].any()


def test_traffic_of_tiles_of_one_size_does_not_grow():
    small, large = (traffic.counted_row("tiles", "tiled", side, (side // 32) ** 2, 8) for side in (128, 256))
    # More tiles of 32 pixels have one whose jittered windows reach a pixel further
    assert large["fields alone, most MB"] == pytest.approx(small["fields alone, most MB"], rel=0.1)
    small, large = (traffic.counted_row("ranks", "tiled", side, 4, 16) for side in (256, 512))
    assert large["fields alone, most MB"] == pytest.approx(2 * small["fields alone, most MB"], rel=0.15)
    small, large = (traffic.counted_row("ranks", "replicated", side, 4, 16) for side in (256, 512))
    assert large["most MB sent"] == pytest.approx(4 * small["most MB sent"], rel=0.05)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_modelled_tiles_are_those_of_the_package(size):
    given = problem(32, jittered((40, 40), 2.0))
    cut = tile_layout(given.positions, given.grid, (32, 32), size, LOAD.margin)
    held = [box.shape[0] * box.shape[1] for box in cut.held]
    told = tiles(LOAD, size)
    assert told.held == pytest.approx(np.mean(held), rel=0.03)
    assert told.most_held == pytest.approx(np.max(held), rel=0.05)


@pytest.mark.parametrize("size", [2, 4, 7, 8])
@pytest.mark.parametrize("kind", EXCHANGES)
def test_modelled_traffic_is_what_is_counted(kind, size):
    given = problem(32, jittered((40, 40), 2.0))
    ledgers = run_ranks(size, lambda comm: traffic._small_sums(kind, given, comm))
    told = modelled(replace(LOAD, slices=1), kind, size)
    # Seven shares end within rows of the scan, so that boxes reach a step further: not modelled
    assert told.sent == pytest.approx(
        np.mean([ledger.total("sent") for ledger in ledgers]), rel=0.1 if size == 7 else 0.02
    )
    assert told.messages == pytest.approx(np.mean([ledger.total("messages") for ledger in ledgers]), rel=0.1)


@pytest.mark.parametrize("kind", EXCHANGES)
def test_limits_of_the_model(kind):
    alone = tilt_seconds(LOAD, RATES, kind, 1)
    assert alone.bytes == alone.latency == alone.packing == alone.imbalance == 0
    assert modelled(LOAD, kind, 1).messages == 0
    # Twice the patterns in batches of twice the size: as many updates, twice the work
    double = replace(LOAD, scan=(80, 40), step=5.0, batch=400)
    assert tilt_seconds(double, RATES, kind, 1).compute == pytest.approx(2 * alone.compute)
    assert double.updates == LOAD.updates
    free = replace(RATES, pixel_seconds=0.0, bandwidth=np.inf, latency=0.0, packing=0.0)
    one = sweep_seconds(LOAD, free, kind, 1, 1).total
    assert one == pytest.approx(LOAD.tilts * LOAD.positions / free.patterns)
    # Whole tilts share nothing: three ranks are three times as fast, and a fourth is idle
    assert sweep_seconds(LOAD, free, kind, 1, 3).total == pytest.approx(one / 3)
    four = sweep_seconds(LOAD, free, kind, 1, 4)
    assert four.total == pytest.approx(one / 3)
    assert four.idle == pytest.approx(one / 3 - one / 4)
    hidden = tilt_seconds(LOAD, replace(RATES, overlap=1.0), kind, 4)
    assert hidden.bytes == hidden.latency == hidden.packing == 0
    assert tilt_seconds(LOAD, RATES, kind, 4).total > hidden.total
    assert one == pytest.approx(sum(getattr(sweep_seconds(LOAD, free, kind, 1, 1), name) for name in PARTS))


def test_imbalance_of_batches_is_that_of_chance():
    rng = np.random.default_rng(0)
    for size in (4, 16, 64):
        shares = rng.multinomial(400, np.full(size, 1 / size), 500)
        load = replace(LOAD, scan=(20, 40), batch=400)
        assert batch_imbalance(load, size) == pytest.approx(shares.max(axis=1).mean() / 400 * size, rel=0.12)
    assert batch_imbalance(replace(LOAD, batch=1), 8) == 8


def test_tiles_partition_what_is_scanned():
    for size in (2, 3, 7, 16):
        found = layout((300.0, 200.0), 32, 4.0, 0, 0, size)
        whole = layout((300.0, 200.0), 32, 4.0, 0, 0, 1)
        assert found.own * size > whole.own
        assert found.most_held < whole.held
    assert whole.sent == whole.neighbours == 0


def test_a_fit_finds_what_was_put_in():
    put_in = Rates(patterns=4e3, pixel_seconds=2e-8, bandwidth=1e9, latency=1e-5, copying=2e-9)
    rows = []
    for scaling, scans in (("strong", dict.fromkeys((1, 2, 4, 8), measure.STRONG)), ("weak", measure.WEAK)):
        for size, scan in scans.items():
            for exchange in EXCHANGES:
                row = {"scaling": scaling, "exchange": exchange, "ranks": size, "scan": scan, "updates": 4}
                row["patterns"] = scan[0] * scan[1]
                times = tilt_seconds(predict.load_of(row), put_in, exchange, size)
                sent = modelled(predict.load_of(row), exchange, size)
                row["compute s"] = times.compute + times.pixels + times.packing
                row |= {"wall s": times.total, "kB sent": 4e-3 * sent.sent, "most kB": 4e-3 * sent.most}
                rows.append(row | {"messages": 4 * sent.messages, "batch imbalance": 1.0})
    pinged = [{"bytes": n, "sum s": 1e-5 + n / 1e9, "swap s": 1e-5 + n / 1e9} for n in (8, 1 << 22)]
    rates = predict.fitted(rows, pinged)
    for found in rates.values():
        assert found.patterns == pytest.approx(put_in.patterns, rel=1e-3)
        assert found.pixel_seconds == pytest.approx(put_in.pixel_seconds, rel=1e-2)
        assert found.copying == pytest.approx(put_in.copying, rel=1e-2)
        assert found.bandwidth == pytest.approx(1e9, rel=1e-2)
    for row in predict.checks(rows, rates):
        assert row["of compute"] == pytest.approx(1, rel=1e-3)
        assert row["of kB"] == pytest.approx(1)
        assert row["of messages"] == pytest.approx(1)


def test_predictions_say_what_limits():
    rows = predict.predictions(predict.ROMANOV, (1, 4, 32))
    by = {(row["GPUs"], row["exchange"], row["groups"]): row for row in rows}
    # 36 tilts in two rounds of 32
    assert by[32, "tiled", "planned"]["efficiency"] == pytest.approx(36 / 64, rel=0.02)
    assert by[32, "tiled", "best"]["efficiency"] > 0.9
    assert by[4, "tiled", "planned"]["sweep s"] == pytest.approx(36 * 640000 / 186e3 / 4, rel=0.02)
    assert all(row["sweep s"] == pytest.approx(sum(row[f"{name} s"] for name in PARTS)) for row in rows)
    one, none = predict.predictions(replace(predict.XRAY, name=predict.XRAY.name), (4,))
    assert (one["groups"], one["limit"]) == ("none fits", "memory")
    assert none["groups"] == "none fits"
    assert predict.least_gpus(predict.XRAY, "replicated") is None
    assert abs(predict.ROMANOV.grid[0] - 1167) < 1
    assert abs(predict.XRAY.grid[0] - 100000) < 100


def run_part(part, tmp_path, *more):
    path = tmp_path / f"{part}.json"
    words = [sys.executable, "-m", "benchmarks.scaling", part, "--small", "--json", str(path), *more]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return path, json.loads(path.read_text())["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["invariance", "seams"])
def test_parts_of_threads_run(part, tmp_path):
    _, rows = run_part(part, tmp_path)
    assert {row["table"] for row in rows} == {part}


@launched
@pytest.mark.mpi
@pytest.mark.slow
def test_overlap_is_measured(tmp_path):
    _, rows = run_part("overlap", tmp_path)
    assert [row["late ms"] for row in rows] == [0, 2, 10]
    assert all(row["in flight s"] > 0 for row in rows)


@launched
@pytest.mark.mpi
@pytest.mark.slow
def test_scaling_is_measured_and_modelled(tmp_path):
    """Small measurements, and the model fitted to them, with its figures."""
    measured, rows = run_part("measure", tmp_path)
    assert {row["table"] for row in rows} == {"pings", "scaling"}
    for row in rows:
        if row["table"] == "scaling":
            assert (row["kB sent"] > 0) == (row["ranks"] > 1)
            assert row["compute s"] > 0
    out = tmp_path / "figures"
    _, rows = run_part("model", tmp_path, "--measured", str(measured), "--out", str(out))
    assert all(row["of kB"] > 0 for row in rows if row["table"] == "model over measured")
    assert {path.name for path in out.iterdir()} == {"measured.png", "romanov.png", "xray.png"}


@launched
@pytest.mark.mpi
@pytest.mark.slow
def test_traffic_is_that_of_real_ranks(tmp_path):
    """Bytes that are counted for empty sums are those of an engine; memory is measured, and drawn."""
    _, rows = run_part("traffic", tmp_path)
    checked = [row for row in rows if row["table"] == "traffic, checked"]
    assert [row["engine / counted"] for row in checked] == pytest.approx([1, 1], rel=0.01)
    remembered = [row for row in rows if row["table"] == "traffic, memory"]
    assert {row["exchange"] for row in remembered} == {"alone", *EXCHANGES}
    assert all(row["most MB"] > row["patterns MB"] > 0 for row in remembered)
    assert all(
        row["of held"] == pytest.approx(1, rel=0.1)
        for row in predict.memory_checks(remembered, traffic.WINDOW, traffic.STEP)
    )
    assert plots.memory(remembered, tmp_path / "memory.png").stat().st_size > 0


def test_a_file_of_something_else_is_told(tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"rows": [{"table": "seams"}]}))
    words = [sys.executable, "-m", "benchmarks.scaling", "model", "--measured", str(other)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no table pings, scaling" in done.stderr
    assert "Traceback" not in done.stderr

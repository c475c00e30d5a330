"""The loop over one tilt: batches → engine → exchange → apply. It knows neither which algorithm nor how many ranks."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray, to_host
from hpcrec.data.batches import BatchReader, global_batches
from hpcrec.data.dataset import TiltSeries
from hpcrec.data.resident import DeviceReader, PatternReader
from hpcrec.engines import engine_class
from hpcrec.engines.base import StreamingEngine, visit
from hpcrec.errors import HpcrecError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.scan import hilbert_order
from hpcrec.io.joined import JoinedArray
from hpcrec.io.results import tilt_path
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.launched import prefers_events
from hpcrec.models.placement import state_on
from hpcrec.models.stream import Block, StepRule, blocks_of
from hpcrec.operators.resample import probe_like
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Exchange, make_exchange
from hpcrec.parallel.flight import make_flight
from hpcrec.run import stop, watch
from hpcrec.run.assess import Assessor, held_out
from hpcrec.run.balance import Balance, ReshareError
from hpcrec.run.build import build_engine, build_model
from hpcrec.run.constrain import Constraints
from hpcrec.run.gather import gathered, in_memory, written_in_parts
from hpcrec.run.halos import cut_reach, grown_probe
from hpcrec.run.job import Job
from hpcrec.run.means import PLAIN, Means
from hpcrec.run.monitor import Monitor
from hpcrec.run.observers import Observer
from hpcrec.run.outcome import Start, TiltOutcome, illumination, peak_memory_gib
from hpcrec.run.saves import Saves, Site, find_checkpoint, make_saves
from hpcrec.run.start import TiltSetup, moving_margin, start_state, tilt_setup

# The part of a tilt whose object is its result
_MAIN: Final = "sweeps"


def checkpoint_prefix(part: str, number: int) -> str:
    """Return the name of the checkpoints of one part of a tilt."""
    return f"{part}_{number:04d}"


def batch_size(job: Job, n_positions: int) -> int:
    """Return how many patterns make one update: the job's number, or the engine's own choice; never the ranks'."""
    return job.ptychography.batch_size or engine_class(job.ptychography.engine).default_batch_size or n_positions


class TiltRun:
    """The reconstruction of one tilt by one group of ranks; every rank of the group makes the same calls."""

    def __init__(
        self,
        job: Job,
        series: TiltSeries,
        grid: Grid,
        i_tilt: int,
        group: Communicator,
        checkpoints: Path,
        report: Observer,
        part: str = _MAIN,
        start: Start | None = None,
        means: Means = PLAIN,
    ) -> None:
        self.job, self.group, self.report, self.checkpoints = job, group, report, checkpoints
        self.prefix = checkpoint_prefix(part, int(series.tilt_numbers[i_tilt]))
        self.setup: TiltSetup = group.broadcast(tilt_setup(job, series, i_tilt, grid) if group.rank == 0 else None)
        setup = self.setup
        self.model = build_model(job, setup.window, setup.sampling, setup.wavelength, setup.mask, means)
        self.engine = build_engine(job, self.model)
        self.constraints = Constraints(job, self.model, float(np.sum(abs(setup.probe) ** 2, dtype=np.float64)))
        kind = "replicated" if job.parallel.exchange == "auto" or group.size == 1 else job.parallel.exchange
        margin = int(np.ceil(job.parallel.halo_margin_angstrom / min(setup.sampling))) + moving_margin(job, series)
        self.margin = margin
        self.balance = Balance(group, means.pace if job.parallel.balance == "measured" else None)
        self.reach = cut_reach(job, setup) if kind == "tiled" else None
        self.exchange: Exchange = make_exchange(
            kind, group, setup.positions, grid, setup.window, margin, self.reach, self.balance.weights
        )
        # A GPU's messages would wait for all that it was told to do
        overlap = job.parallel.overlap if means.device.kind == "cpu" else "never"
        self.flight = make_flight(self.exchange, overlap, self.balance.waiting)
        self.scan = scan = series.tilt(i_tilt)
        self.n_positions = scan.n_positions
        mine = self.exchange.share(np.arange(scan.n_positions))
        scratch = self._scratch = Path(job.parallel.scratch or checkpoints)
        self.device, on_host = means.device, BatchReader(scan, mine, memory_limit=means.pattern_bytes, scratch=scratch)
        self.on_host = on_host
        self.reader: PatternReader = on_host
        if self.device.kind == "gpu":
            events = job.ptychography.kernel == "auto" and prefers_events(setup.window)
            self.reader = DeviceReader(on_host, mine, self.device, means.device_pattern_bytes, events=events)
        self.held_out = held_out(job.quality, setup)
        self.used = np.setdiff1d(np.arange(scan.n_positions), self.held_out)
        self.own = np.intersect1d(mine, self.used)
        # Arrays of single patterns go by their places among the used ones
        self.places = np.searchsorted(self.used, self.own)
        self.monitor = Monitor(job, setup, group)
        self.assessor = Assessor(self.model, scan, self.reader, self.exchange, means.threads)
        self.loss: list[float] = []
        self.data_error: list[float] = []
        self.held_out_error: list[float] = []
        self._site = Site(
            folder=checkpoints, prefix=self.prefix, group=group, exchange=self.exchange, places=self.places
        )
        self.writer: Saves = make_saves(self._site, tiled=kind == "tiled")
        self._in_parts = kind == "tiled" and part == _MAIN
        self.state = self._start(start)
        self.saved = self._first = self.state.iteration

    def _start(self, start: Start | None) -> PtychographyState:
        """Return the state of the last good checkpoint, or ``start``, or an empty object under the starting probe."""
        setup = self.setup
        found = find_checkpoint(self._site)
        if found is None:
            state = start_state(self.job, setup, self.exchange.held)
            if start is not None:
                self._begin_from(state, start)
        else:
            state = self._resume(found.arrays, found.attributes)
        if self.device.kind == "gpu":
            state = state_on(self.device.module, state)
        state.own, state.core, state.visited = self.own, self.exchange.core, len(self.used)
        state.windowed = self.group.size == 1
        self.engine.prepare(state)
        return state

    def _begin_from(self, state: PtychographyState, start: Start) -> None:
        """Put what was found at another resolution into a fresh state; moves still count from the given positions."""
        state.memory["start_positions"] = state.positions
        state.obj = self.exchange.place(start.obj)
        state.probe = probe_like(start.probe, state.probe)
        state.positions = start.positions.copy()
        state.refined = {name: values.copy() for name, values in start.refined.items()}
        self.exchange.update_positions(state.positions)

    def _resume(self, arrays: dict[str, Array], attributes: dict[str, Any]) -> PtychographyState:
        self.loss, self.data_error = list(arrays["loss"]), list(arrays["data_error"])
        self.held_out_error = list(arrays.get("held_out_error", ()))

        def group(name: str) -> dict[str, Array]:
            return {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}

        return PtychographyState(
            obj=arrays["obj"],
            probe=arrays["probe"],
            positions=arrays["positions"],
            grid=self.setup.grid,
            box=self.exchange.held,
            iteration=int(attributes["iteration"]),
            n_states=self.job.ptychography.object_states,
            refined=group("refined:"),
            object_memory=group("object_memory:"),
            memory=group("memory:"),
            pattern_memory=group("patterns:"),
        )

    def save(self, *, wait: bool = True) -> None:
        """Write a checkpoint of the whole state; collective. Without ``wait`` it may still be under way afterwards."""
        curves = {name: np.array(getattr(self, name)) for name in ("loss", "data_error", "held_out_error")}
        self.writer.save(self.state, curves, wait=wait)
        self.saved = self.state.iteration

    def sweep(self) -> None:
        """Visit every pattern once."""
        job = self.job.ptychography
        self.state.whole_pixels = self.state.iteration < job.whole_pixel_iterations
        batches = global_batches(
            len(self.used),
            batch_size(self.job, len(self.used)),
            seed=job.seed,
            tilt=self.setup.number,
            iteration=self.state.iteration,
            kind=job.batch_kind,
            order=hilbert_order(self.setup.positions[self.used]) if job.batch_kind == "compact" else None,
        )
        batches = [self.used[indices] for indices in batches]
        rule = self._rule()
        sums = self._visit(batches) if rule is None else self._stream(batches, rule)
        self.constraints.free_scale(self.state)
        self.engine.finish_iteration(self.state)
        self.loss.append(float(sums[0]))
        self.data_error.append(float(sums[1] / sums[2]))
        warning = self.monitor.check(self.state, self.loss, self.data_error)
        if warning:
            self._tell({"event": "warning", "text": warning})
        self.exchange.update_positions(self.state.positions)
        self.constraints.apply(self.state, self.exchange)
        if self.reach is not None:
            for _, values in sorted({"": self.state.obj, **self.state.object_memory}.items()):
                self.exchange.refresh(values)
        if len(self.held_out):
            self.held_out_error.append(self.assessor.quality(self.state, self.held_out).data_error)

    def _rule(self) -> StepRule | None:
        """Return the engine's rule for compiled sweeps, where this rank has all patterns and the model knows how."""
        if self.group.size > 1 or not self.model.streams_on(self.state) or not isinstance(self.engine, StreamingEngine):
            return None
        return self.engine.step_rule(self.state)

    def _visit(self, batches: list[IntArray]) -> FloatArray:
        """Run the engine on batches (n,); return the sums of loss, error and counts (3,)."""
        sums = np.zeros(3)
        shares = [self.exchange.share(indices) for indices in batches]
        if self.flight is not None:
            shares = [self.flight.order(own, self.state.positions) for own in shares]
        exchange = self.balance.timed(self.exchange.total)
        for step, (own, patterns) in enumerate(zip(shares, self.reader.iterate(shares))):
            watch.step()
            good = self.scan.read_good(own)
            whole = batches[step]
            batch = Batch(indices=own, patterns=patterns, good=good, step=step, n_global=len(whole), of_all=whole)
            in_flight = self.flight.total if self.flight is not None and self.flight.pays(batch) else None
            total = visit(self.engine, self.state, batch, exchange, in_flight)
            sums += [float(total.sums[name][0]) for name in ("loss", "error", "counts")]
        self.balance.swept(len(self.own) * self.setup.n_slices)
        return sums

    def _stream(self, batches: list[IntArray], rule: StepRule) -> FloatArray:
        """Do the same by a rule, many batches in a call."""
        sums = np.zeros(3)
        most = self.model.block_patterns(self.state)
        most = most if self.on_host.in_memory else min(most, self.on_host.per_block)
        blocks = list(blocks_of([self.exchange.share(indices) for indices in batches], most))
        indices = [np.concatenate(block) for block in blocks]
        for block, own, (patterns, rows) in zip(blocks, indices, self.on_host.iterate_rows(indices)):
            watch.step()
            edges = np.cumsum([0, *(len(batch) for batch in block)])
            good = self.scan.read_good(own)
            sums += self.model.stream(
                self.state, Block(indices=own, edges=edges, patterns=patterns, rows=rows, good=good), rule
            )
        return sums

    def run(self) -> TiltOutcome | None:
        """Sweep until done, with checkpoints; return the outcome on the group's first rank, None elsewhere.

        Raises :class:`ReshareError` where the first sweeps have told that the ranks should have other shares.
        """
        job, setup = self.job.ptychography, self.setup
        started = time.perf_counter()
        first = self.state.iteration
        event = {"tilt": setup.number, "iterations": job.iterations, "n_positions": self.n_positions}
        self._tell({"event": "tilt_started", **event, "resumed_at": first, "slices": setup.n_slices})
        try:
            self._sweeps()
        except BaseException:
            with suppress(HpcrecError):
                self.writer.wait()
            raise
        self.writer.finish()
        if self.state.iteration < job.iterations:
            self._tell({"event": "note", "text": f"tilt {setup.number}: converged after {self.state.iteration} sweeps"})
        watch.now(f"looks at tilt {setup.number}")
        return self._outcome(time.perf_counter() - started, self.state.iteration - first)

    def _sweeps(self) -> None:
        """Sweep until done or asked to leave, which takes a checkpoint."""
        job, setup = self.job.ptychography, self.setup
        while not self.monitor.done(self.state.iteration, self.data_error, self.held_out_error):
            leave = stop.agreed(self.group)
            if leave is not None:
                self._leave(leave)
            watch.now(f"sweep {self.state.iteration + 1} of tilt {setup.number}")
            before = time.perf_counter()
            self.sweep()
            seconds = time.perf_counter() - before
            self._tell(
                {
                    "event": "sweep",
                    "tilt": setup.number,
                    "iteration": self.state.iteration,
                    "loss": self.loss[-1],
                    "data_error": self.data_error[-1],
                    **({"held_out_error": self.held_out_error[-1]} if self.held_out_error else {}),
                    "seconds": seconds,
                    "patterns_per_s": self.n_positions / seconds,
                }
            )
            self.writer.check()
            if self.state.iteration % job.checkpoint_every == 0 and self.state.iteration < job.iterations:
                self.save(wait=False)
            told = self.balance.change(self.state.iteration - self._first, job.iterations - self.state.iteration)
            if told:
                text = f"tilt {setup.number}: its ranks are as fast as {told}, and share it so from here"
                self._tell({"event": "note", "text": text})
                self._leave(ReshareError())

    def _leave(self, reason: Exception) -> None:
        """Raise ``reason`` once a checkpoint holds all that was done."""
        if self.state.iteration > self.saved:
            self.save()
        self.writer.finish()
        # Nobody leaves before the checkpoint is written
        self.group.idle_barrier()
        raise reason

    def _object(self) -> ComplexArray | JoinedArray | None:
        """Return the object on the group's first rank: large ones of tiles in parts, if they are the tilt's result."""
        obj, grid, number = self.state.obj, self.setup.grid, self.setup.number
        whole_bytes = math.prod((*obj.shape[:-2], *grid.shape)) * obj.dtype.itemsize
        if self._in_parts and not in_memory(whole_bytes):
            way, result = self.job.parallel.large_results, tilt_path(self.checkpoints, number)
            return written_in_parts(self.exchange, obj, grid, result, number, way)
        return gathered(self.exchange, obj, self._scratch, number)

    def close(self) -> None:
        """Give the patterns' memory back; the run cannot go on afterwards."""
        self.reader.close()

    def _tell(self, event: dict[str, Any]) -> None:
        if self.group.rank == 0:
            self.report(event)

    def _outcome(self, seconds: float, sweeps: int) -> TiltOutcome | None:
        self.state.whole_pixels = False
        patterns = self.assessor.table(self.state, np.arange(self.n_positions))
        probe, cut = to_host(self.state.probe), self.job.parallel.halo_cut
        grown = grown_probe(self.setup, probe, self.reach, self.margin, cut) if self.group.rank == 0 else ""
        if grown:
            self._tell({"event": "warning", "text": grown})
        obj = self._object()
        memory = self.group.gather(peak_memory_gib())
        if obj is None or memory is None:
            return None
        self._tell(
            {
                "event": "tilt_done",
                "tilt": self.setup.number,
                "data_error": self.data_error[-1],
                "seconds": seconds,
                "patterns_per_s": self.n_positions * sweeps / seconds if sweeps else 0.0,
                "peak_memory_gib": max(memory),
            }
        )
        return TiltOutcome(
            setup=self.setup,
            obj=obj,
            probe=probe,
            positions=self.state.positions,
            illumination=illumination(probe, self.state.positions, self.setup.grid),
            refined={name: to_host(values) for name, values in self.state.refined.items()},
            loss=np.array(self.loss),
            data_error=np.array(self.data_error),
            held_out=self.held_out,
            held_out_error=np.array(self.held_out_error),
            patterns=patterns,
            stopped_early=len(self.loss) < self.job.ptychography.iterations,
            seconds=seconds,
            peak_memory_gib=max(memory),
        )

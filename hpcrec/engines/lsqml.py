"""Least-squares maximum likelihood, LSQ-ML: steps of optimal length in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, array_module, to_host
from hpcrec.backend.kernels.updates import precondition
from hpcrec.engines.base import DONE, Engine, bounded
from hpcrec.engines.compact import SweepObject
from hpcrec.engines.sweeps import (
    SweepOptions,
    change_object,
    change_refined,
    constrain_object,
    darken_round_off,
    finish_sweep,
    gradient_partial,
    prepare_state,
    round_off,
)
from hpcrec.geometry.tiles import EMPTY_BOX
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import KeptWaves
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.responses import responses, room_to_keep
from hpcrec.objectives.losses import POISSON_FLOOR
from hpcrec.options import options
from hpcrec.refine.base import Refinement

_TRIM = 0.1
_FIXED_POINTS, _LARGEST_STEP = 4, 0.99


@options
class LsqMlOptions(SweepOptions):
    """Options of LSQ-ML, beside those of all engines.

    weight_floor : δ, share of the largest illumination in the preconditioner √(W² + (δ W_max)²)
    damping : λ, share of the mean diagonal added to the 2×2 systems of the steps
    step_share : share of the optimal step that is taken
    momentum : share of the last change that is added to the next one; 0 is the published engine. With object_update =
        "sweep": gain of the published momentum, 0 to 0.5
    object_update : "batch" moves the object after each batch, as sparse sets ask for; "sweep" adds up the batches of a
        sweep and moves it once, as compact sets ask for (``batch_kind = "compact"``); the probe moves with each batch
    poisson_step : with the Poisson loss, share of its gradient that waves should follow: one half, the step of least
        squares, or the best share of each pattern by a fixed point; about as fast, and some work more
    """

    weight_floor: float = 0.1
    damping: float = 0.1
    step_share: float = 0.9
    momentum: float = 0.0
    object_update: Literal["batch", "sweep"] = "batch"
    poisson_step: Literal["half", "fixed_point"] = "half"


def _copies(options: LsqMlOptions, windowed: bool) -> tuple[float, float]:
    """Return the copies beside the sums of a batch, and all: directions and their total stay till the next ones."""
    if options.object_update == "sweep":
        return 8.1, 10.6
    if windowed:
        kept = 2.0 if options.momentum else 1.0
        return kept, kept
    return (4.6, 7.6) if options.momentum else (3.6, bounded(options, 5.1))


def _box_copies(options: LsqMlOptions, windowed: bool) -> tuple[float, float]:
    """Return the copies of the box of a batch among those: gradient and illumination, direction, what is lit."""
    return (0.0, 0.0) if windowed and options.object_update == "batch" else (2.6, 2.6)


class LsqMl(Engine):
    """LSQ-ML (Odstrčil, Menzel and Guizar-Sicairos, Opt. Express 26, 3108 (2018)).

    Pass "direction": D_O = Σ ψ*χ / √(W² + (δ W_max)²) and D_P = Σ O*χ / Σ max|O|² over the batch.
    Pass "step": for each position the far field's first-order change along D_O (of all slices together) and along D_P
    gives a 2×2 least-squares problem for both step lengths (eq. 22); for one slice these are the published sums,
    since the far field is a unitary map. The steps of the batch, negative ones set to zero, enter as their mean
    without the largest and smallest tenth. The 2×2 systems travel in an array over the patterns of the whole batch, so
    this statistic is the same on every rank. For counts with Poisson noise χ is ξ times the gradient's, ½ or
    in the least-squares problems the best of each pattern (:func:`poisson_steps`).
    Objects that move once a sweep add the passes "weight" and "products", see :class:`SweepObject`.
    """

    Options = LsqMlOptions
    default_batch_size = 64
    passes = ("direction", "step", "weight", "products")
    pixel_passes = ("weight", "products")
    peaks = {"direction": ("illumination",), "weight": ("sum_weight",)}
    copies = staticmethod(_copies)
    box_copies = staticmethod(_box_copies)
    keeps_batch = True
    divided = ("direction", "step")

    def __init__(self, model: PtychographyModel, options: LsqMlOptions, refinements: Sequence[Refinement] = ()) -> None:
        self._model, self._options, self._refinements = model, options, refinements
        # What pass "direction" leaves for pass "step": its total, the lit pixels, both directions, the waves
        self._directions = Total({}, {})
        self._touched: Field = Field(EMPTY_BOX, np.zeros((1, 0, 0), bool))
        self._object_direction: Field = self._touched
        self._probe_direction: ComplexArray | None = None
        # By the number of the part of a share
        self._kept: dict[int, KeptWaves | None] = {}
        self._batches: dict[int, Batch] = {}
        self._sweep: SweepObject | None = None
        if options.object_update == "sweep":
            gain = options.momentum
            self._sweep = SweepObject(options.weight_floor, gain, options.object_constraint)

    def prepare(self, state: PtychographyState) -> None:
        """Fill the momenta with zeros where they lack."""
        prepare_state(state, self._refinements)
        if self._sweep is not None:
            self._sweep.prepare(state)
        elif self._options.momentum:
            state.object_memory.setdefault("velocity", array_module(state.obj).zeros_like(state.obj))
            state.memory.setdefault("probe_velocity", array_module(state.probe).zeros_like(state.probe))

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return the sums of the directions, or the terms of the 2×2 systems of a share's positions."""
        if name == "direction":
            kept = room_to_keep(self._model, state, len(batch.indices), self._kept.get(batch.part))
            self._kept[batch.part], self._batches[batch.part] = kept, batch
            common, windowed = (self._model, state, batch, self._options, self._refinements), self._sweep is None
            return gradient_partial(*common, windowed=windowed, kept=kept)
        if self._sweep is not None and name in self.pixel_passes:
            return self._sweep.weights(state) if name == "weight" else self._sweep.products(state)
        probe = self._probe_direction
        change = np.zeros_like(state.probe) if probe is None else probe
        kept = self._kept[batch.part] if batch is self._batches.get(batch.part) else None
        found = responses(self._model, state, batch, self._object_direction, change, kept)
        if self._options.loss == "poisson" and self._options.poisson_step == "fixed_point":
            found[:, 3:] *= self._model.curvature * self._poisson_steps(state, batch)[:, None]
        terms = np.zeros((max(batch.n_global, len(found)), 5))
        terms[batch.places] = found
        return Partial({}, {"terms": terms})

    def apply(self, name: str, state: PtychographyState, total: Total) -> str | None:
        """Keep the directions, or take the steps along them; at the end of a sweep perhaps that of the object."""
        if name == "direction":
            self._keep_directions(state, total)
            return None
        if name == "step":
            complete = self._take_steps(state, total)
            # Not before: the responses must see the windows of the directions
            change_refined(state, self._directions, self._refinements)
            return None if complete else DONE
        assert self._sweep is not None
        if name == "weight":
            self._sweep.take_peak(total)
        else:
            self._sweep.finish(state, total)
        return None

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, fix scale and drift."""
        moving = self._options.momentum and self._sweep is None
        finish_sweep(state, self._options, self._refinements, momenta=("probe_velocity",) if moving else ())

    def _poisson_steps(self, state: PtychographyState, batch: Batch) -> FloatArray:
        batch = batch_beside(state.obj, batch)
        patterns, good = self._model.clean(batch), self._model.good(batch)
        return poisson_steps(self._model.simulate(state, batch.indices), patterns, good)

    def _keep_directions(self, state: PtychographyState, total: Total) -> None:
        peak = total.peaks["illumination"]
        floor = self._options.weight_floor * peak
        self._directions, self._probe_direction = total, None
        if total.windows is not None:
            direction = total.windows.divide(floor=floor, dark=round_off(state.obj.dtype, peak))
            self._object_direction = Field(state.box, direction)
        else:
            field, weight = total.fields["object_gradient"], total.fields["illumination"].values
            darken_round_off(weight, peak)
            direction = precondition(field.values, weight, 1.0, floor, -1.0, quadratic=True)
            self._touched, self._object_direction = Field(field.box, weight > 0), Field(field.box, direction)
        if "probe_gradient" in total.sums and total.sums["object_weight"].max() > 0:
            largest = total.sums["object_weight"].max()
            self._probe_direction = total.sums["probe_gradient"] * (-1 / largest)

    def _take_steps(self, state: PtychographyState, total: Total) -> bool:
        """Move probe and object; return whether a sweep's object is complete."""
        terms = total.sums["terms"]
        if len(terms) == 0:
            return False
        steps = step_lengths(terms, self._options.damping, probe=self._probe_direction is not None)
        # Python floats leave single-precision arrays single
        object_step, probe_step = (self._options.step_share * steps).tolist()
        complete = False
        if self._sweep is None:
            self._move_object(state, object_step)
        else:
            complete = self._sweep.add(state, self._directions, object_step, len(terms))
        if self._probe_direction is not None:
            change = probe_step * self._probe_direction
            if self._sweep is None:
                change = self._with_momentum(change, state.memory, "probe_velocity")
            state.probe = (state.probe + change).astype(state.probe.dtype, copy=False)
        return complete

    def _move_object(self, state: PtychographyState, step: float) -> None:
        chosen, windows = self._options, self._directions.windows
        if windows is not None:
            windows.follow(
                state.obj,
                state.object_memory["velocity"] if chosen.momentum else None,
                step=step,
                momentum=chosen.momentum,
                dark=round_off(state.obj.dtype, self._directions.peaks["illumination"]),
                bound=chosen.object_constraint,
            )
            return
        box, touched = self._touched.box, self._touched.values
        index = (slice(None), *box.slices(state.box))
        change: ComplexArray = np.multiply(step, self._object_direction.values)
        change = self._with_momentum(change, state.object_memory, "velocity", index, touched)
        change_object(state, box, change)
        constrain_object(state, box, touched, chosen.object_constraint)

    def _with_momentum(
        self,
        change: Array,
        memory: dict[str, Array],
        name: str,
        index: tuple[slice, ...] = (),
        touched: Array | None = None,
    ) -> Array:
        if not self._options.momentum:
            return change
        old = memory[name][index]
        xp = array_module(old)
        new = (change + self._options.momentum * old).astype(old.dtype, copy=False)
        if touched is None:
            memory[name][index] = new
            return new
        memory[name][index] = xp.where(touched, new, old)
        return xp.where(touched, new, 0)  # type: ignore[no-any-return]


def step_lengths(terms: FloatArray, damping: float, *, probe: bool) -> FloatArray:
    """Return the step lengths (2,) along the object's and the probe's direction, the latter 0 without ``probe``.

    ``terms`` (n, 5): Σ|A|², Re Σ AB*, Σ|B|², Re Σ A*χ, Re Σ B*χ of each position, see
    :func:`hpcrec.models.multislice.add_responses`. For each position solves [[a11, a12], [a12, a22]] s = b with
    ``damping`` times the batch's mean added to the diagonal, and returns the trimmed mean of max(s, 0).
    """
    a11, a12, a22, b1, b2 = terms.T
    a11 = a11 + damping * a11.mean()
    if not probe or not a22.any():
        first = np.divide(b1, a11, out=np.zeros_like(b1), where=a11 > 0)
        return np.array([trimmed_mean(np.maximum(first, 0)), 0.0])
    a22 = a22 + damping * a22.mean()
    determinant = a11 * a22 - a12**2
    steps = np.stack([a22 * b1 - a12 * b2, a11 * b2 - a12 * b1])
    steps = np.divide(steps, determinant, out=np.zeros_like(steps), where=determinant > 0)
    return trimmed_mean(np.maximum(steps, 0))


def trimmed_mean(values: FloatArray) -> FloatArray:
    """Return the mean over the last axis without the largest and smallest tenth, as scipy.stats.trim_mean.

    That takes a millisecond, a tenth of a batch.
    """
    n = values.shape[-1]
    cut = int(_TRIM * n)
    return np.asarray(np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1))


def poisson_steps(modelled: FloatArray, measured: Array, good: BoolArray | None) -> FloatArray:
    """Return ξ (n,) float64 of each pattern: where Σ I(1−ξw)² − I₀ ln I(1−ξw)² is least, w = 1 − I₀/I.

    By the damped fixed point ξ ← ½ (ξ + Σ w (I − I₀/(1−ξw)) / Σ I w²) from ½ (Odstrčil et al. (2018), for counts);
    ε of the Poisson loss is added to both intensities. Between 0 and 1, beyond which dark pixels would change sign.
    """
    xp = array_module(modelled)
    found = modelled.astype(np.float64) + POISSON_FLOOR
    wanted = measured.astype(np.float64) + POISSON_FLOOR
    weight = 1 - wanted / found
    if good is not None:
        weight = weight * good
    size = np.sum(found * weight**2, axis=(1, 2))
    divisor = xp.where(size > 0, size, 1)
    steps = xp.full(len(found), 0.5)
    for _ in range(_FIXED_POINTS):
        left = found - wanted / (1 - steps[:, None, None] * weight)
        aim = xp.where(size > 0, np.sum(weight * left, axis=(1, 2)) / divisor, 0.5)
        steps = np.clip(0.5 * (steps + aim), 0, _LARGEST_STEP)
    return to_host(steps)

"""How detector frames lie to the scan: the eight flips, the turn, and what data can say about them.

A stored frame's k becomes k' = D k by one of eight flips (``transpose``, then ``flip_y``, ``flip_x``), a stored
position p becomes R p by ``scan_rotation_deg``. The patterns know only O = Dᵀ R, which takes the scan's frame into the
frame of the detector: moving the other one instead mirrors or turns the object and fits as well, so which way up the
sample really was, and its handedness, no data can tell. One limit more, in the far field of a thin sample: frames
turned by half a turn (−O) fit the complex conjugate of object and probe, so defocus and phase change sign together, and
only a known sign of one of them decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from hpcrec.backend.array import FloatArray

_SWAP: Final = np.array([[0.0, 1.0], [1.0, 0.0]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """A flip of the frames and a turn of the scan: the options of ``io/base.py`` of the same names.

    ``rotation`` in rad, from x towards y, of the positions.
    """

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False
    rotation: float = 0.0

    @property
    def flip(self) -> FloatArray:
        """D (2, 2) in (y, x): the frequency k of a stored frame becomes D k."""
        signs = np.diag([-1.0 if self.flip_y else 1.0, -1.0 if self.flip_x else 1.0])
        return signs @ _SWAP if self.transpose else signs

    @property
    def mirrored(self) -> bool:
        """Whether D changes the handedness."""
        return self.transpose != (self.flip_y != self.flip_x)

    @property
    def turn(self) -> FloatArray:
        """O = Dᵀ R (2, 2): all that the patterns know."""
        found: FloatArray = self.flip.T @ rotation_matrix(self.rotation)
        return found

    @property
    def conjugate(self) -> Orientation:
        """Frames turned by half a turn: −O."""
        return Orientation(
            transpose=self.transpose, flip_y=not self.flip_y, flip_x=not self.flip_x, rotation=self.rotation
        )

    def frame_options(self) -> dict[str, bool | float]:
        """Return the options of a reader that move the frames, and turn the scan."""
        return {
            "transpose": self.transpose,
            "flip_y": self.flip_y,
            "flip_x": self.flip_x,
            "scan_rotation_deg": round(float(np.degrees(self.rotation)), 3) + 0.0,  # no −0
        }

    def position_options(
        self, columns: tuple[int, int] = (0, 1), flips: tuple[bool, bool] = (False, False)
    ) -> dict[str, list[int] | bool | float]:
        """Return the options that give the same O by moving the positions alone.

        ``columns`` and ``flips`` (y, x) are what the reader did to the positions before. The object comes out in the
        frame of the detector: O = Dᵀ R is R' Dᵀ, and Dᵀ swaps first and flips then, as the reader does.
        """
        first, second = (self.flip_x, self.flip_y) if self.transpose else (self.flip_y, self.flip_x)
        before = flips[::-1] if self.transpose else flips
        rotation = -self.rotation if self.mirrored else self.rotation
        return {
            "position_columns": list(columns[::-1] if self.transpose else columns),
            "flip_position_y": first != before[0],
            "flip_position_x": second != before[1],
            "scan_rotation_deg": round(float(np.degrees(rotation)), 3) + 0.0,
        }

    def describe(self) -> str:
        """Return the flips in words."""
        names = [name for name in ("transpose", "flip_y", "flip_x") if getattr(self, name)]
        return " + ".join(names) or "as stored"


FLIPS: Final = tuple(
    Orientation(transpose=t, flip_y=y, flip_x=x) for t, y, x in product((False, True), (False, True), (False, True))
)


def rotation_matrix(angle: float) -> FloatArray:
    """Return the matrix (2, 2) in (y, x) that turns by ``angle`` rad from x towards y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def orientation_of(turn: FloatArray) -> Orientation:
    """Return the flip, and the least turn of the scan that goes with it, |angle| ≤ 45°, for O (2, 2)."""
    handed = bool(np.linalg.det(turn) < 0)

    def rest(flip: Orientation) -> float:
        rotation = flip.flip @ turn
        return float(np.arctan2(rotation[0, 1] - rotation[1, 0], np.trace(rotation)))

    best = min((flip for flip in FLIPS if flip.mirrored == handed), key=lambda flip: abs(rest(flip)))
    return Orientation(transpose=best.transpose, flip_y=best.flip_y, flip_x=best.flip_x, rotation=rest(best))


def turn_from_curl(angle: float, mirrored: bool) -> FloatArray:
    """Return O (2, 2), up to its sign, for the turn ``angle`` that frees the field k̄ from curl.

    k̄ as stored for the handedness of the scan, its components exchanged where ``mirrored``: that field turned by the
    angle is the gradient Oᵀ k̄.
    """
    back = rotation_matrix(-angle)
    return _SWAP @ back if mirrored else back


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """How two explanations of the same held-out patterns compare.

    ``ratio`` of the errors, second over first; ``sigmas`` the mean of (second − first) over its standard error.
    """

    ratio: float
    sigmas: float


def contest(first: FloatArray, second: FloatArray) -> Contest:
    """Compare the errors Σ(|F| − √I)² (pattern,) of two reconstructions on the same patterns.

    A single pattern has no standard error: it says nothing, 0 sigmas.
    """
    difference = np.asarray(second, np.float64) - first
    if len(difference) < 2:
        return Contest(ratio=float(np.sum(second) / max(float(np.sum(first)), 1e-30)), sigmas=0.0)
    noise = float(difference.std(ddof=1)) / np.sqrt(len(difference))
    mean = float(difference.mean())
    return Contest(
        ratio=float(np.sum(second) / max(float(np.sum(first)), 1e-30)),
        sigmas=mean / noise if noise > 0 else np.copysign(np.inf, mean) if mean else 0.0,
    )


def certainty(found: Contest) -> str:
    """Return "certain", "likely" or "cannot tell" for a lead.

    Certain: over five standard errors and 5 % more error; likely: over three and 2 %. Less than that round-off and the
    order of batches can do, however sure the statistics seem.
    """
    if found.sigmas > 5 and found.ratio > 1.05:
        return "certain"
    return "likely" if found.sigmas > 3 and found.ratio > 1.02 else "cannot tell"

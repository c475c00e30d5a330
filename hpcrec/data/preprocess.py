"""From detector frames as stored to patterns as computed with: orientation, binning, window, zero frequency, masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, BoolArray
from hpcrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorFrame:
    """How a stored frame (rows, columns) becomes a pattern (ky, kx) with its zero frequency at [0, 0].

    The steps, in order: transpose, flip about the zero frequency, add ``binning``×``binning`` pixels, cut (or extend
    with unmeasured pixels) the window of ``shape`` around the zero frequency, move the zero frequency to [0, 0].

    ``stored`` (rows, columns) of the file; ``corner`` whether it has the zero frequency at [0, 0] already (frames are
    then centred first where a later step needs it); ``centre`` pixel of the zero frequency in the (centred) frame;
    ``shape`` (ky, kx) of the result. Flipping an even axis carries the Nyquist row to its alias, itself.
    Even binning factors put the zero frequency half a fine pixel beside the centre of its coarse pixel, which
    is a phase ramp on the exit wave and therefore on the probe; odd factors are exact.
    """

    stored: tuple[int, int]
    centre: tuple[int, int]
    shape: tuple[int, int]
    corner: bool = False
    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False
    binning: int = 1
    clip_negative: bool = False

    def clean(self, frames: Array, raw_mask: BoolArray | None) -> Array:
        """Return the stored frames (n, rows, columns) with bad pixels, and with ``clip_negative`` negatives, at zero.

        ``raw_mask`` (rows, columns), True = good. The input is changed in place: it is the reader's own copy.
        """
        if raw_mask is not None:
            frames[:, ~raw_mask] = 0
        if self.clip_negative and frames.dtype.kind in "if":
            np.maximum(frames, 0, out=frames)
        return frames

    def apply(self, frames: Array) -> Array:
        """Return patterns (n, ky, kx) from frames (n, rows, columns); unmeasured pixels are zero."""
        if self._untouched:
            return frames
        out, centre = self._oriented(frames)
        out, centre = _binned(out, centre, self.binning, self.result_dtype(frames.dtype))
        return _window(out, centre, self.shape, 0)

    def apply_mask(self, raw_mask: BoolArray | None) -> BoolArray | None:
        """Return the mask (ky, kx) of good pixels; a binned pixel is good if all its pixels are. None if all are good.

        ``raw_mask`` (rows, columns) or None. Pixels of the window that the detector does not cover are bad.
        """
        good = np.ones(self.stored, bool) if raw_mask is None else raw_mask
        if self._untouched:
            return None if good.all() else good
        bad, centre = self._oriented((~good)[None])
        bad, centre = _binned(bad.astype(np.uint8), centre, self.binning, np.dtype(np.uint32))
        mask: BoolArray = _window(bad, centre, self.shape, 1)[0] == 0
        return None if mask.all() else mask

    def apply_masks(self, raw_masks: BoolArray) -> BoolArray:
        """Return masks (n, ky, kx) of good pixels from those of frames (n, rows, columns), as :meth:`apply_mask`."""
        if self._untouched:
            return raw_masks
        bad, centre = self._oriented(~raw_masks)
        bad, centre = _binned(bad.astype(np.uint8), centre, self.binning, np.dtype(np.uint32))
        good: BoolArray = _window(bad, centre, self.shape, 1) == 0
        return good

    def result_dtype(self, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
        """Return the type of patterns made from frames of ``dtype``: the same, or wide enough for binned sums."""
        if self.binning == 1:
            return dtype
        wide = {"u": np.uint32, "i": np.int32, "f": np.float32}[dtype.kind]
        return np.promote_types(dtype, wide)

    @property
    def _untouched(self) -> bool:
        oriented = self.transpose or self.flip_y or self.flip_x
        return self.corner and not oriented and self.binning == 1 and self.shape == self.stored

    def _oriented(self, frames: Array) -> tuple[Array, tuple[int, int]]:
        centre = self.centre
        if self.corner:
            frames = np.fft.fftshift(frames, axes=(1, 2))
        if self.transpose:
            frames, centre = frames.swapaxes(1, 2), (centre[1], centre[0])
        size = frames.shape[1:]
        if self.flip_y:
            frames, centre = frames[:, ::-1], (size[0] - 1 - centre[0], centre[1])
        if self.flip_x:
            frames, centre = frames[:, :, ::-1], (centre[0], size[1] - 1 - centre[1])
        return frames, centre


def binned_shape(stored: tuple[int, int], transpose: bool, binning: int) -> tuple[int, int]:
    """Return the shape of the oriented and binned detector, before a window is cut."""
    rows, columns = stored[::-1] if transpose else stored
    return rows // binning, columns // binning


def _binned(
    frames: Array, centre: tuple[int, int], binning: int, dtype: np.dtype[np.generic]
) -> tuple[Array, tuple[int, int]]:
    if binning == 1:
        return frames, centre
    slices, new_centre = [], []
    for size, c in zip(frames.shape[1:], centre):
        first = (c - (binning - 1) // 2) % binning  # a coarse pixel is centred on the zero frequency
        slices.append(slice(first, first + (size - first) // binning * binning))
        new_centre.append((c - first) // binning)
    cut = frames[:, slices[0], slices[1]]
    n, rows, columns = cut.shape
    blocks = cut.reshape(n, rows // binning, binning, columns // binning, binning)
    return blocks.sum(axis=(2, 4), dtype=dtype), (new_centre[0], new_centre[1])


def _window(frames: Array, centre: tuple[int, int], shape: tuple[int, int], fill: int) -> Array:
    """Cut ``shape`` around ``centre``, frequencies −(n//2) … (n−1)//2, and store them with zero at [0, 0]."""
    out = np.empty((len(frames), *shape), frames.dtype)
    pairs = [_halves(size, c, n) for size, c, n in zip(frames.shape[1:], centre, shape)]
    covered = [sum(part.stop - part.start for _, part in pair) for pair in pairs]
    if tuple(covered) != shape:
        out.fill(fill)
    for target_y, source_y in pairs[0]:
        for target_x, source_x in pairs[1]:
            out[:, target_y, target_x] = frames[:, source_y, source_x]
    return out


def _halves(size: int, centre: int, n: int) -> list[tuple[slice, slice]]:
    """Return (target, source) slices of the non-negative, the negative and the aliased Nyquist frequency of an axis."""
    positive = max(min((n + 1) // 2, size - centre), 0)
    negative = max(min(n // 2, centre), 0)
    pairs = [
        (slice(0, positive), slice(centre, centre + positive)),
        (slice(n - negative, n), slice(centre - negative, centre)),
    ]
    if n % 2 == 0 and negative == n // 2 - 1 and centre + n // 2 < size:  # +n/2 and −n/2 are the same frequency
        pairs.append((slice(n // 2, n // 2 + 1), slice(centre + n // 2, centre + n // 2 + 1)))
    return pairs


def count_fault(frames: Array) -> tuple[int, str] | None:
    """Return (index of the frame, what is wrong) for the first frame with impossible counts, or None.

    ``frames`` (n, rows, columns) of a real type; unsigned integers cannot be wrong.
    """
    if frames.dtype.kind == "u" or frames.size == 0:
        return None
    lowest = frames.reshape(len(frames), -1).min(axis=1)
    wrong = ~(lowest >= 0)  # true for not-a-number too
    if frames.dtype.kind == "f":
        wrong |= ~np.isfinite(frames.reshape(len(frames), -1).sum(axis=1, dtype=np.float64))
    if not wrong.any():
        return None
    i_frame = int(np.argmax(wrong))
    worst = lowest[i_frame]
    return i_frame, (f"negative counts (down to {worst:g})" if worst < 0 else "counts that are not finite numbers")


def bad_pixels(total: Array, factor: float = 5.0) -> BoolArray:
    """Return the isolated dead and hot pixels (ky, kx) of a detector: True = bad.

    ``total`` (ky, kx) counts summed over many patterns, so that its noise is known to be Poisson's. A pixel is hot
    above ``factor`` times its brightest of eight neighbours, dead below its darkest over ``factor``, by more than six
    standard deviations; the edge of a bright disc is neither. Raises :class:`ConfigError` for a factor up to 1.
    """
    if factor <= 1:
        raise ConfigError(f"bad_pixels needs a factor above 1, got {factor}")
    total = np.asarray(total, np.float64)
    padded = np.pad(total, 1, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*total.shape, 9)
    around = np.delete(windows, 4, axis=-1)
    high, low = around.max(axis=-1), around.min(axis=-1)
    hot = total > factor * high + 6 * np.sqrt(factor * high + 1)
    bad: BoolArray = hot | (total < low / factor - 6 * np.sqrt(low / factor + 1))
    return bad

"""Partial sums: what ranks and batches contribute to one update.

Everything an engine needs from other patterns is a sum, so a :class:`Partial` holds arrays that may be *added*:
``fields`` live on object pixels (each with the box it touches), ``sums`` are small and global. Numerators and weights
stay apart; nothing is ever averaged. An exchange turns the partials of all ranks into a :class:`Total`, which also
carries the global maxima that engines ask for by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpcrec.backend.array import Array, array_module
from hpcrec.geometry.tiles import Box
from hpcrec.models.windows import WindowSums


@dataclass(frozen=True, slots=True)
class Field:
    """Values on object pixels: ``values`` (…, y, x) covers exactly ``box``."""

    box: Box
    values: Array

    def __add__(self, other: Field) -> Field:
        """Add on the smallest box around both."""
        if self.box == other.box:
            return Field(self.box, self.values + other.values)
        if self.box.empty:
            return other
        if other.box.empty:
            return self
        box = self.box.union(other.box)
        dtype = np.result_type(self.values.dtype, other.values.dtype)
        values = array_module(self.values).zeros(self.values.shape[:-2] + box.shape, dtype)
        for part in (self, other):
            values[(..., *part.box.slices(box))] += part.values
        return Field(box, values)


@dataclass(frozen=True, slots=True)
class Partial:
    """What one rank found in one batch; partials of the same pass hold the same names and may be added.

    ``windows`` takes the place of the fields of a gradient where one rank has all patterns, see ``state.windowed``.
    """

    fields: dict[str, Field] = field(default_factory=dict)
    sums: dict[str, Array] = field(default_factory=dict)
    windows: WindowSums | None = None

    def __add__(self, other: Partial) -> Partial:
        """Add field by field and sum by sum."""
        if self.windows is not None or other.windows is not None:
            raise ValueError("gradients on windows are of one rank and cannot be added")
        return Partial(
            {name: value + other.fields[name] for name, value in self.fields.items()},
            {name: value + other.sums[name] for name, value in self.sums.items()},
        )


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of all ranks' partials.

    Each rank sees ``fields`` on the part of the touched box that it holds (core and halo, already complete), all
    ``sums``, and ``peaks``: the maximum over the *whole* object of each field an engine asked for.
    """

    fields: dict[str, Field]
    sums: dict[str, Array]
    peaks: dict[str, float] = field(default_factory=dict)
    windows: WindowSums | None = None

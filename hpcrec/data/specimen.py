"""Specimens made of atoms: nanoparticles, amorphous layers, and how they stand in a pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from hpcrec.backend.array import FloatArray, IntArray
from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose
from hpcrec.options import options
from hpcrec.physics.scattering import atomic_number, chemical_symbols


@dataclass(frozen=True, kw_only=True, slots=True)
class Specimen:
    """Atoms of a sample.

    numbers : (atom,) atomic numbers
    positions : (atom, 3) float64 Å, components (z, y, x), relative to the point about which the sample is tilted
    b_factors : (atom,) float64 Debye-Waller B in Å², B = 8π²⟨u²⟩ with u along one direction
    """

    numbers: IntArray
    positions: FloatArray
    b_factors: FloatArray

    @property
    def n_atoms(self) -> int:
        """How many atoms there are."""
        return len(self.numbers)

    @property
    def symbols(self) -> list[str]:
        """Chemical symbol of every atom."""
        names = chemical_symbols()
        return [names[int(z) - 1] for z in self.numbers]


def specimen_from_atoms(numbers: Sequence[int] | IntArray, positions: FloatArray, b_factor: float = 0.0) -> Specimen:
    """Return the specimen of ``numbers`` (atom,) at ``positions`` (atom, 3) Å in (z, y, x), one B for all.

    :class:`ConfigError` for shapes that do not fit, an unknown element or a position that is not finite.
    """
    numbers = np.asarray(numbers, np.int64).reshape(-1)
    positions = np.asarray(positions, np.float64)
    if positions.shape != (len(numbers), 3):
        raise ConfigError(
            f"expected positions of shape ({len(numbers)}, 3) for {len(numbers)} atoms, got {positions.shape}"
        )
    if len(numbers) and not (numbers.min() >= 1 and numbers.max() <= len(chemical_symbols())):
        raise ConfigError(
            f"expected atomic numbers from 1 to {len(chemical_symbols())}, got {numbers.min()}…{numbers.max()}"
        )
    if not np.isfinite(positions).all():
        raise ConfigError("expected finite atom positions, got a NaN or an infinity")
    return Specimen(numbers=numbers, positions=positions, b_factors=np.full(len(numbers), float(b_factor)))


_FACE_CENTRES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def _spinel_cell(u: float) -> tuple[IntArray, FloatArray]:
    """Return numbers (56,) and fractions (56, 3) of Co3O4, Fd-3m with its origin on −3m (choice 2).

    Co in 8a (⅛, ⅛, ⅛) and 16d (½, ½, ½), O in 32e (u, u, u): International Tables A, no. 227.
    """
    eighth = np.array([[1, 1, 1], [7, 3, 3]]) / 8
    half = np.array([[2, 2, 2], [1, 3, 0], [3, 0, 1], [0, 1, 3]]) / 4
    signs = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
    shifts = np.array([[0, 0, 0], [3, 1, 2], [1, 2, 3], [2, 3, 1]]) / 4
    oxygen = np.concatenate([signs * u + shifts, -(signs * u + shifts)])
    sites = [(27, eighth), (27, half), (8, oxygen)]
    fractions = [(s[:, None, :] + _FACE_CENTRES).reshape(-1, 3) % 1.0 for _, s in sites]
    numbers = np.concatenate([np.full(len(f), z) for (z, _), f in zip(sites, fractions)])
    return numbers, np.concatenate(fractions)


def co3o4_cube(n_cells: int | tuple[int, int, int], b_factor: float = 0.4) -> Specimen:
    """Return a cuboid of ``n_cells`` (z, y, x) cells of the spinel Co3O4, centred on its own middle.

    a = 8.084 Å, u = 0.2631 (Smith & Hobson, Acta Cryst. B29 (1973) 362); 56 atoms a cell; ``b_factor`` in Å².
    """
    a, u = 8.084, 0.2631
    cells = (n_cells,) * 3 if isinstance(n_cells, int) else n_cells
    if min(cells) < 1:
        raise ConfigError(f"expected at least one cell along each axis, got {cells}")
    numbers, fractions = _spinel_cell(u)
    corners = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = a * (corners + fractions).reshape(-1, 3)
    positions -= (positions.min(axis=0) + positions.max(axis=0)) / 2
    return specimen_from_atoms(np.tile(numbers, len(corners)), positions, b_factor)


def amorphous_layer(
    extent: tuple[float, float, float],
    centre: tuple[float, float, float],
    *,
    symbol: str = "C",
    density: float = 0.1,
    min_distance: float = 1.4,
    b_factor: float = 0.4,
    seed: int = 0,
) -> Specimen:
    """Return a box of atoms at random places with a smallest distance (random sequential addition).

    ``extent`` and ``centre`` (z, y, x) in Å; ``density`` in atoms/Å³ (0.1 is carbon of 2 g/cm³); ``min_distance`` in Å.
    :class:`ConfigError` if the atoms do not fit, which happens near π/6·density·distance³ ≈ 0.38 (jamming).
    """
    wanted = round(float(np.prod(extent)) * density)
    rng = np.random.default_rng(seed)
    placed = np.empty((0, 3))
    for _ in range(400):
        if len(placed) >= wanted:
            break
        trial = (rng.random((max(wanted, 16), 3)) - 0.5) * extent + centre
        if len(placed):
            trial = trial[cKDTree(placed).query(trial)[0] >= min_distance]
        pairs = cKDTree(trial).query_pairs(min_distance, output_type="ndarray")
        # Of two candidates too close to each other the later one goes.
        keep = np.setdiff1d(np.arange(len(trial)), pairs[:, 1])
        placed = np.concatenate([placed, trial[keep]])[:wanted]
    if len(placed) < wanted:
        raise ConfigError(
            f"{wanted} atoms at least {min_distance} Å apart do not fit into {extent} Å: lower density or distance"
        )
    return specimen_from_atoms(np.full(wanted, atomic_number(symbol)), placed, b_factor)


def joined(*parts: Specimen) -> Specimen:
    """Return one specimen with the atoms of all ``parts``, in their order."""
    return Specimen(
        numbers=np.concatenate([p.numbers for p in parts]),
        positions=np.concatenate([p.positions for p in parts]),
        b_factors=np.concatenate([p.b_factors for p in parts]),
    )


def posed(specimen: Specimen, pose: Pose) -> Specimen:
    """Return the specimen as it stands in front of the beam: r_lab = R r_sample, then the shift (dy, dx) in Å."""
    lab = specimen.positions[:, ::-1] @ np.asarray(pose.rotation).T
    return replace(specimen, positions=lab[:, ::-1] + np.array([0.0, *pose.shift]))


@options
class SpecimenOptions:
    """What stands on the stage.

    kind : "co3o4_cube" builds the particle from the crystal structure, "file" reads atoms from ``path``
    path : file of the atoms (xyz, or CIF and whatever else ase reads) for kind "file"
    n_cells : unit cells of the cube along z, y, x
    b_factor_angstrom2 : Debye-Waller B of all atoms, B = 8π²⟨u²⟩; also sets the frozen-phonon displacements
    carbon_thickness_angstrom : thickness of an amorphous carbon layer under the particle; 0 is none
    carbon_width_angstrom : side of the (square) carbon layer
    carbon_seed : seed of the carbon atoms
    """

    kind: Literal["co3o4_cube", "file"] = "co3o4_cube"
    path: str = ""
    n_cells: tuple[int, int, int] = (2, 2, 2)
    b_factor_angstrom2: float = 0.4
    carbon_thickness_angstrom: float = 0.0
    carbon_width_angstrom: float = 60.0
    carbon_seed: int = 0


def on_carbon(particle: Specimen, chosen: SpecimenOptions) -> Specimen:
    """Return the particle on the carbon layer that ``chosen`` asks for, 2 Å downstream of its last atom."""
    thickness, width = chosen.carbon_thickness_angstrom, chosen.carbon_width_angstrom
    if thickness <= 0:
        return particle
    z = float(particle.positions[:, 0].max()) + 2.0 + thickness / 2
    layer = amorphous_layer(
        (thickness, width, width), (z, 0.0, 0.0), b_factor=chosen.b_factor_angstrom2, seed=chosen.carbon_seed
    )
    return joined(particle, layer)


def build_specimen(chosen: SpecimenOptions) -> Specimen:
    """Return the specimen that ``chosen`` describes; atoms in a file are read by ``io.atoms`` (ConfigError)."""
    if chosen.kind != "co3o4_cube":
        raise ConfigError(
            f"kind = {chosen.kind!r}: a specimen from a file is read by hpcrec.io.atoms.read_specimen first"
        )
    return on_carbon(co3o4_cube(chosen.n_cells, chosen.b_factor_angstrom2), chosen)

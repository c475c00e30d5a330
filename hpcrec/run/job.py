"""What a job file says: one frozen options class a section. ``run/config.py`` reads and checks it.

Values carry their unit in the name. The sections of algorithms are the options classes beside those algorithms.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from hpcrec.analysis.atoms import AtomOptions
from hpcrec.engines.cg import CgOptions
from hpcrec.engines.difference_map import DifferenceMapOptions
from hpcrec.engines.epie import EpieOptions
from hpcrec.engines.fista import FistaOptions
from hpcrec.engines.gradient import GradientOptions
from hpcrec.engines.lbfgs import LbfgsOptions
from hpcrec.engines.lsqml import LsqMlOptions
from hpcrec.engines.mpie import MpieOptions
from hpcrec.engines.pie import PieOptions
from hpcrec.engines.projections import ProjectionOptions
from hpcrec.engines.raar import RaarOptions
from hpcrec.engines.relaxed_average import RelaxedAverageOptions
from hpcrec.engines.resire import ResireOptions
from hpcrec.engines.rpie import RpieOptions
from hpcrec.engines.three_pie import ThreePieOptions
from hpcrec.engines.wasp import WaspOptions
from hpcrec.objectives.constraints import ConstraintOptions
from hpcrec.objectives.depth import (
    DepthSmoothingOptions,
    IdenticalSlicesOptions,
    KzFilterOptions,
    LayerVariationOptions,
)
from hpcrec.objectives.illumination import ApertureOptions, PowerOptions, SupportOptions
from hpcrec.objectives.lateral import ButterworthOptions, LateralVariationOptions, SmoothnessOptions
from hpcrec.objectives.transmission import (
    AmplitudeBoundOptions,
    ComplexRatioOptions,
    PositivePhaseOptions,
    SparsePhaseOptions,
)
from hpcrec.options import options
from hpcrec.refine.aberrations import AberrationOptions
from hpcrec.refine.affine import AffineOptions
from hpcrec.refine.annealing import AnnealingOptions
from hpcrec.refine.background import BackgroundOptions
from hpcrec.refine.intensity import IntensityOptions
from hpcrec.refine.positions import PositionOptions
from hpcrec.refine.thickness import ThicknessOptions
from hpcrec.refine.tilt import PositionTiltOptions, TiltOptions
from hpcrec.refine.variable_probe import VariableProbeOptions
from hpcrec.run.job_parallel import ParallelSection
from hpcrec.tomography.align import AlignmentOptions
from hpcrec.tomography.denoise import DenoiseOptions
from hpcrec.tomography.prepare import PrepareOptions


@options
class BeamSection:
    """The beam; leave the section out where the data have pixel units only (one slice then).

    kind : electrons or photons
    energy_ev : kinetic energy of an electron, or energy of a photon
    """

    kind: Literal["electron", "photon"] = "electron"
    energy_ev: float


@options
class ProbeSection:
    """The starting probe.

    source : "aperture" computes it from the values below, "file" takes the one in the data file, "patterns" carries the
        mean pattern's amplitude back to the sample, over the defocus if that is given
    semiangle_mrad : half convergence angle
    defocus_angstrom : positive is underfocus, counted from the middle of the sample
    astigmatism_angstrom, astigmatism_angle_deg : two-fold astigmatism C12 and its direction
    spherical_mm : C30
    modes : number of mutually incoherent probe modes; "auto", or left out: those of more than 1 % of the power under
        source_sigma_angstrom and focal_spread_angstrom, one where neither is given
    mode_share : share of the power each extra mode starts with
    source_sigma_angstrom, focal_spread_angstrom : standard deviations of the source's image on the sample and of the
        focus, where known
    """

    source: Literal["aperture", "file", "patterns"] = "aperture"
    semiangle_mrad: float | None = None
    defocus_angstrom: float = 0.0
    astigmatism_angstrom: float = 0.0
    astigmatism_angle_deg: float = 0.0
    spherical_mm: float = 0.0
    modes: int | Literal["auto"] = "auto"
    mode_share: float = 0.02
    source_sigma_angstrom: float = 0.0
    focal_spread_angstrom: float = 0.0


@options
class PtychographySection:
    """How each tilt's patterns become complex object slices.

    engine : update rule; its own options stand in the table of the same name below
    iterations : sweeps over all patterns, at most
    coarse_iterations : sweeps before these at half the resolution, on the middle half of the detector: cheap, and far
        structures find one another sooner
    whole_pixel_iterations : first sweeps that take positions at the nearest pixel, which halves the transforms of one
        slice; sub-pixel positions, and what refines them, begin after these
    early_stop_tolerance : stop where the data error (of held-out patterns, where there are any) falls by less than this
        share within early_stop_window sweeps; 0 makes all sweeps
    batch_size : patterns in one update, over all ranks of a group; 0 takes the engine's own choice
    batch_kind : "random" scatters a batch over the scan, "compact" takes neighbours
    slices : object slices of every tilt, a list with one number for each tilt of the data, or "auto": the sample's
        thickness over that of a slice. Left out, it is "auto" where sample_thickness_angstrom is given, else 1
    slice_thickness_angstrom : distance between slices; "auto" is the depth of field λ/θ² of the aperture, and what
        slices = "auto" takes where this is left out
    sample_thickness_angstrom, sample_shape : used by slices = "auto"; a film's path grows with 1/cos, a particle's
        at most by √2
    object_states : mutually incoherent states of the object
    propagation : between slices: "fresnel", or "exact" for steep angles
    precision : of waves and object
    kernel : "compiled" loops of processors; plain "array" code, on GPUs too; or "auto", the fastest that knows what the
        job asks for
    deterministic : sums on GPUs are the same to the last bit from run to run; slower
    seed : of the order of batches
    checkpoint_every : sweeps between checkpoints of a tilt
    """

    engine: Literal[
        "epie",
        "rpie",
        "mpie",
        "pie",
        "three_pie",
        "wasp",
        "dm",
        "raar",
        "er",
        "relaxed_average",
        "lsqml",
        "cg",
        "lbfgs",
        "gradient",
    ] = "lsqml"
    iterations: int = 50
    coarse_iterations: int = 0
    whole_pixel_iterations: int = 0
    early_stop_tolerance: float = 0.0
    early_stop_window: int = 10
    batch_size: int = 0
    batch_kind: Literal["random", "compact"] = "random"
    slices: int | list[int] | Literal["auto"] | None = None
    slice_thickness_angstrom: float | Literal["auto"] | None = None
    sample_thickness_angstrom: float | None = None
    sample_shape: Literal["film", "particle"] = "particle"
    object_states: int = 1
    propagation: Literal["fresnel", "exact"] = "fresnel"
    precision: Literal["single", "double"] = "single"
    kernel: Literal["auto", "array", "compiled"] = "auto"
    deterministic: bool = False
    seed: int = 1
    checkpoint_every: int = 20
    epie: EpieOptions = field(default_factory=EpieOptions)
    rpie: RpieOptions = field(default_factory=RpieOptions)
    mpie: MpieOptions = field(default_factory=MpieOptions)
    pie: PieOptions = field(default_factory=PieOptions)
    three_pie: ThreePieOptions = field(default_factory=ThreePieOptions)
    wasp: WaspOptions = field(default_factory=WaspOptions)
    dm: DifferenceMapOptions = field(default_factory=DifferenceMapOptions)
    raar: RaarOptions = field(default_factory=RaarOptions)
    er: ProjectionOptions = field(default_factory=ProjectionOptions)
    relaxed_average: RelaxedAverageOptions = field(default_factory=RelaxedAverageOptions)
    lsqml: LsqMlOptions = field(default_factory=LsqMlOptions)
    cg: CgOptions = field(default_factory=CgOptions)
    lbfgs: LbfgsOptions = field(default_factory=LbfgsOptions)
    gradient: GradientOptions = field(default_factory=GradientOptions)


@options
class DetectorSection:
    """What the detector does to waves, beside the mask that the data bring.

    field : "far" (diffraction) or "near" (an image in front of the focus of the detector optics, or behind the sample)
    distance_angstrom : effective distance from the sample to a near-field detector
    saturation_counts : counts from which a pixel of a pattern says nothing
    point_spread_pixels : standard deviation of the point spread, in pixels of the patterns
    upsampling : model pixels along each side of a detector pixel; the probe's window grows by this factor
    flight_points, flight_angstrom : for a scan that moves during the exposure: points in which the way (y, x) of one
        exposure is modelled
    """

    field: Literal["far", "near"] = "far"
    distance_angstrom: float | None = None
    saturation_counts: float | None = None
    point_spread_pixels: float = 0.0
    upsampling: int = 1
    flight_points: int = 1
    flight_angstrom: tuple[float, float] = (0.0, 0.0)


@options
class RefineSection:
    """What is refined beside object and probe; a table switches it on, an empty one with its defaults.

    positions, annealing : scan positions, by their gradient or by random trials
    affine : draws positions to an affine distortion of the scan
    tilt, position_tilt : tilt of the sample against the beam, of the whole scan or position by position
    thickness : distance between slices
    aberrations : defocus, astigmatism … of the probe
    variable_probe : a probe that varies from position to position
    intensity : a factor of each pattern
    background : counts beside those of the sample
    """

    positions: PositionOptions | None = None
    annealing: AnnealingOptions | None = None
    affine: AffineOptions | None = None
    tilt: TiltOptions | None = None
    position_tilt: PositionTiltOptions | None = None
    thickness: ThicknessOptions | None = None
    aberrations: AberrationOptions | None = None
    variable_probe: VariableProbeOptions | None = None
    intensity: IntensityOptions | None = None
    background: BackgroundOptions | None = None


@options
class ConstraintSection:
    """What holds for object and probe between sweeps; a table switches it on. They act in this order.

    Gauges, which change no pattern:
    centre : the probe's centre of mass comes to the middle of its window
    ramp : linear phase ramps of the slices go to the probe
    scale : the mean of |O| becomes 1 in each slice
    Of the object, in the plane and along the beam:
    tv : total variation of each slice
    smoothness : Gaussian smoothing of each slice
    butterworth : low-pass filter of each slice
    kz_filter : filter in k_z against crosstalk between slices
    layer_tv : total variation from slice to slice
    z_smoothing : Gaussian smoothing from slice to slice
    identical_slices : slices that are alike
    Of the object, pixel by pixel:
    sparse_phase : soft threshold of the phase
    complex_ratio : a fixed ratio of absorption and phase
    positive_phase : phases of one sign
    amplitude_bound, phase_only : bounds of |O|; the probe's power is free then, unless probe_power holds it
    Of the probe:
    probe_aperture : a disc of angles
    probe_support : a disc in real space
    probe_power : the measured power
    """

    centre: ConstraintOptions | None = None
    ramp: ConstraintOptions | None = None
    scale: ConstraintOptions | None = None
    tv: LateralVariationOptions | None = None
    smoothness: SmoothnessOptions | None = None
    butterworth: ButterworthOptions | None = None
    kz_filter: KzFilterOptions | None = None
    layer_tv: LayerVariationOptions | None = None
    z_smoothing: DepthSmoothingOptions | None = None
    identical_slices: IdenticalSlicesOptions | None = None
    sparse_phase: SparsePhaseOptions | None = None
    complex_ratio: ComplexRatioOptions | None = None
    positive_phase: PositivePhaseOptions | None = None
    amplitude_bound: AmplitudeBoundOptions | None = None
    phase_only: ConstraintOptions | None = None
    probe_aperture: ApertureOptions | None = None
    probe_support: SupportOptions | None = None
    probe_power: PowerOptions | None = None


@options
class TomographySection:
    """How phase projections become a volume.

    solver : "fista" or "resire"
    tilt_axis_deg : in-plane angle of the tilt axis, from y
    thickness_angstrom : extent of the volume along the beam, over the whole field; 0 takes a box around the object
    field_angstrom : (y, x) extent of the reconstructed field, y along the tilt axis, centred on the scan; 0 takes the
        scanned field
    binning : detector pixels per voxel
    half_sets : also reconstruct even and odd tilts apart, for the Fourier shell correlation
    """

    solver: Literal["fista", "resire"] = "fista"
    tilt_axis_deg: float = 0.0
    thickness_angstrom: float = 0.0
    field_angstrom: tuple[float, float] = (0.0, 0.0)
    binning: int = 1
    half_sets: bool = True
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    denoise: DenoiseOptions = field(default_factory=DenoiseOptions)
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    fista: FistaOptions = field(default_factory=FistaOptions)
    resire: ResireOptions = field(default_factory=ResireOptions)


@options
class QualitySection:
    """What is measured of each tilt's ptychography, and the limits that a good run keeps.

    A broken limit ends the command with its own exit code, after everything is done and written.

    hold_out : share of the patterns that no update uses, evenly spread inside the scan; their error shows overfitting,
        chooses parameters and stops early. Their positions and factors are not refined
    frc : also reconstruct two half scans, for the Fourier ring correlation of each tilt; doubles the work
    max_data_error, max_held_out_error : Σ(√Î − √I)²/ΣI of the patterns used, and of those held out
    max_r_factor : Σ|√I − √Î|/Σ√I of the patterns used
    max_deviance : Poisson deviance per good pixel of the patterns used
    max_drift_angstrom : rms distance of refined positions from the given ones
    max_resolution_angstrom : half-bit resolution of the ring correlation; finer is good
    """

    hold_out: float = 0.0
    frc: bool = False
    max_data_error: float | None = None
    max_held_out_error: float | None = None
    max_r_factor: float | None = None
    max_deviance: float | None = None
    max_drift_angstrom: float | None = None
    max_resolution_angstrom: float | None = None


@options
class AnalysisSection:
    """What is measured in the volume.

    atoms : how atoms are traced and named; leave out to trace none
    reference : file with the true atoms (a simulated series, or xyz/CIF); read by the comparison only
    match_within_angstrom : an atom counts as found when one of its species lies this near
    """

    atoms: AtomOptions | None = None
    reference: str = ""
    match_within_angstrom: float = 0.5


@options
class Job:
    """A whole job; ``data`` is the options object of the reader that ``data.format`` names.

    name : of the run; letters, digits, dot, dash, underscore
    tomography, analysis : leave out to stop after the phase images
    """

    version: Literal[1] = 1
    name: str
    data: Any
    beam: BeamSection | None = None
    probe: ProbeSection = field(default_factory=ProbeSection)
    detector: DetectorSection = field(default_factory=DetectorSection)
    ptychography: PtychographySection = field(default_factory=PtychographySection)
    refine: RefineSection = field(default_factory=RefineSection)
    constraints: ConstraintSection = field(default_factory=ConstraintSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    quality: QualitySection = field(default_factory=QualitySection)
    tomography: TomographySection | None = None
    analysis: AnalysisSection | None = None

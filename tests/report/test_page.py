"""The report page: complete without any part, self-contained, every text escaped, well-formed."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hpcrec.analysis.atoms import AtomTable
from hpcrec.analysis.compare import compare_atoms
from hpcrec.analysis.quality import QualityReport, TiltQuality, atom_quality, resolution_quality
from hpcrec.analysis.resolution import crystal_resolution, directional_correlations, fourier_shell_correlation
from hpcrec.report.content import AlignmentView, PatternView, ReportContent, ResolutionView, TiltView, VolumeView
from hpcrec.report.page import render_report
from hpcrec.report.pattern_figures import ring_correlations

VOID = {"meta", "img", "br", "link", "input"}


class Checker(HTMLParser):
    """Collects headings and resources, and complains of tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.headings, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def check(content):
    page = render_report(content)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(source.startswith("data:image/") for source in checker.sources)
    assert not re.search(r"<script|@import|url\(", page)
    return page, checker


def tilts(n, **more):
    rng = np.random.default_rng(0)
    return [
        TiltView(
            index=i,
            tilt_deg=-60.0 + 10 * i,
            phase=rng.standard_normal((40, 50)).astype(np.float32),
            sampling=(0.2, 0.2),
            data_error=np.geomspace(0.3, 0.02, 12),
            **more,
        )
        for i in range(n)
    ]


def alignment(n):
    rng = np.random.default_rng(1)
    return AlignmentView(
        tilt_deg=np.linspace(-60, 60, n),
        shifts=rng.standard_normal((n, 2)),
        angle_corrections_deg=rng.standard_normal((n, 3)),
        history=np.array([0.6, 0.5, 0.45]),
        bins=np.array([2, 1, 1]),
        residuals=rng.uniform(0.3, 0.4, n),
        sums_before=rng.standard_normal((n, 50)),
        sums_after=rng.standard_normal((n, 50)),
        pixel_size=0.2,
    )


@pytest.fixture(scope="module")
def full():
    rng = np.random.default_rng(2)
    volume = rng.standard_normal((24, 26, 28)).astype(np.float32)
    voxel = (0.4, 0.4, 0.4)
    halves = volume + 0.3 * rng.standard_normal((2, *volume.shape))
    fsc = fourier_shell_correlation(*halves, voxel)
    cones = directional_correlations(*halves, voxel)
    peaks = crystal_resolution(volume, voxel)
    positions = rng.uniform(-4, 4, (60, 3))
    species = np.array(["Co", "O"])[rng.integers(0, 2, 60)]
    atoms = AtomTable(
        positions=positions, species=species, intensity=rng.uniform(0.5, 1, 60), confidence=rng.uniform(0.8, 1, 60)
    )
    comparison = compare_atoms(positions, species, positions, species)
    series = [TiltQuality(index=i, tilt_deg=10.0 * i, data_error=0.02, mass=80.0, n_residues=0) for i in range(13)]
    quality = QualityReport(
        tilts=series,
        data_error=0.02,
        projection_error=0.12,
        resolution=resolution_quality(fsc, cones, peaks),
        atoms=atom_quality(atoms, comparison),
        warnings=["the mass varies"],
    )
    return ReportContent(
        title="Cobalt oxide",
        subtitle="13 tilts",
        warnings=["the mass varies", "two ranks were slow"],
        tilts=tilts(4, probe=np.ones((2, 16, 16), complex), probe_sampling=(0.2, 0.2)),
        alignment=alignment(7),
        volume=VolumeView(volume=volume, voxel_size=0.4, convergence=np.geomspace(1, 0.1, 9)),
        resolution=ResolutionView(overall=fsc, directions=cones, peaks=peaks),
        atoms=atoms,
        quality=quality,
        parameters={"ptychography": {"iterations": 40, "drop": [1, 2]}},
        provenance={"version": "0.1.0"},
        timings={"ptychography": 4000.0, "tomography": 30.0},
    )


def test_full_page(full):
    page, checker = check(full)
    wanted = [
        "Ptychography",
        "Alignment",
        "Volume",
        "Resolution",
        "Atoms",
        "Quality by tilt",
        "Parameters",
        "Provenance",
    ]
    assert checker.headings == ["Cobalt oxide", "Warnings", *wanted]
    assert page.count("the mass varies") == 1  # said once, though two sources say it
    assert page.index("Warnings") < page.index("Ptychography")
    assert "ptychography.iterations" in page
    assert "1 h 7 min" in page
    assert "100.0%" in page
    assert len(checker.sources) >= 11


def test_same_content_same_page():
    content = ReportContent(title="twice", tilts=tilts(2), alignment=alignment(5))
    assert render_report(content) == render_report(content)


def test_empty_page():
    _, checker = check(ReportContent(title="Nothing yet"))
    assert checker.headings == ["Nothing yet"]
    assert checker.sources == []


def test_single_tilt_without_length_units():
    view = TiltView(index=0, phase=np.zeros((30, 40)), slices=np.zeros((2, 30, 40)), probe=np.ones((1, 8, 8), complex))
    quality = QualityReport(tilts=[TiltQuality(index=0, data_error=0.018)], data_error=0.018)
    page, checker = check(ReportContent(title="Siemens star", tilts=[view], quality=quality))
    assert checker.headings == ["Siemens star", "Ptychography", "Quality by tilt"]
    assert "0.018" in page
    assert len(checker.sources) == 2


@pytest.mark.parametrize(
    "part",
    [
        {"alignment": AlignmentView(tilt_deg=np.arange(5.0), shifts=np.zeros((5, 2)))},
        {"volume": VolumeView(volume=np.zeros((8, 9, 10), np.float32), voxel_size=0.5)},
        {"resolution": ResolutionView()},
        {
            "atoms": AtomTable(
                positions=np.zeros((0, 3)), species=np.zeros(0, "<U2"), intensity=np.zeros(0), confidence=np.zeros(0)
            )
        },
        {
            "atoms": AtomTable(
                positions=np.zeros((1, 3)), species=np.array(["O"]), intensity=np.ones(1), confidence=np.ones(1)
            )
        },
        {"tilts": [TiltView(index=3, phase=np.zeros((6, 5)), data_error=np.array([]))]},
        {"tilts": tilts(2)},
        {"quality": QualityReport(tilts=[TiltQuality(index=0), TiltQuality(index=1)])},
    ],
    ids=lambda part: next(iter(part)),
)
def test_every_part_may_come_alone(part):
    check(ReportContent(title="part", **part))


def test_text_is_escaped():
    nasty = '<script>alert("x")</script>'
    content = ReportContent(
        title=nasty, subtitle=nasty, warnings=[nasty], parameters={nasty: nasty}, provenance={"a": {nasty: [nasty]}}
    )
    page, _ = check(content)
    assert "&lt;script&gt;" in page


def pattern_view(n, held_out=True):
    rng = np.random.default_rng(3)
    a = rng.standard_normal((2, 64, 64))
    return PatternView(
        positions=rng.uniform(0, 20, (n, 2)),
        residual=rng.uniform(0.01, 0.02, n),
        moves=rng.normal(0, 0.1, (n, 2)),
        held_out=np.array([3, 17] if held_out else [], np.int64),
        held_out_error=np.geomspace(0.4, 0.05, 12) if held_out else np.zeros(0),
        frc=fourier_shell_correlation(a[0] + a[1], a[0] - 0.2 * a[1], (0.2, 0.2)),
    )


@pytest.mark.parametrize("n_tilts", [1, 5])
def test_how_well_patterns_are_explained_is_drawn(n_tilts):
    """Residual maps, held-out errors, moves, mode powers and ring correlations: five figures more than without."""
    plain = ReportContent(title="plain", tilts=tilts(n_tilts))
    figures = [TiltQuality(index=i, tilt_deg=10.0 * i, r_factor=0.1, mode_powers=[0.9, 0.1]) for i in range(n_tilts)]
    quality = QualityReport(tilts=figures, broken_limits=["tilt 0: the R factor of 0.1 is above 0.05"])
    rich = ReportContent(title="rich", tilts=tilts(n_tilts, patterns=pattern_view(100)), quality=quality)
    page, checker = check(rich)
    assert len(checker.sources) == len(check(plain)[1].sources) + 5
    assert "is above 0.05" in page
    assert "R factor" in page
    assert "held out" not in page.split("Quality by tilt")[1], "a figure that no tilt has is no column"


def test_patterns_that_were_all_used_and_did_not_move():
    still = replace(pattern_view(30, held_out=False), moves=np.zeros((30, 2)), frc=None)
    _, checker = check(ReportContent(title="still", tilts=tilts(1, patterns=still)))
    assert len(checker.sources) == len(check(ReportContent(title="x", tilts=tilts(1)))[1].sources) + 1


def test_data_without_a_unit_of_length_are_drawn_in_pixels():
    """The curve is an SVG, whose text is searched."""
    drawn = {}
    for sampling in (None, (0.2, 0.2)):
        view = replace(tilts(1, patterns=pattern_view(30))[0], sampling=sampling)
        data = ring_correlations([view]).data
        drawn[sampling] = base64.b64decode(data.partition("base64,")[2]).decode()
    assert "(1/px)" in drawn[None]
    assert "Å" not in drawn[None]
    assert "(1/Å)" in drawn[0.2, 0.2]

"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from hpcrec.analysis.quality import AtomQuality, QualityReport, ResolutionQuality, TiltQuality
from hpcrec.report.canvas import Picture
from hpcrec.report.content import ReportContent
from hpcrec.report.figures import (
    alignment_figure,
    error_curves,
    phase_montage,
    probe_modes,
    sinogram_figure,
    tilt_quality,
)
from hpcrec.report.pattern_figures import (
    drift_figure,
    held_out_curves,
    mode_power_figure,
    residual_maps,
    ring_correlations,
)
from hpcrec.report.volume_figures import (
    atom_histogram,
    atom_projections,
    correlation_figure,
    orthoslices,
    peak_spectra,
    power_spectra,
    volume_convergence,
)


def render_report(content: ReportContent) -> str:
    """Return the whole page as HTML text: pictures and style inline, no script, nothing fetched.

    Sections without content are left out. Every text is escaped.
    """
    css = files("hpcrec.report").joinpath("style.css").read_text(encoding="utf-8")
    body = [
        _header(content),
        _warnings(content),
        _cards(content),
        _section("Ptychography", _ptychography(content)),
        _section("Alignment", _alignment(content)),
        _section("Volume", _volume(content)),
        _section("Resolution", _resolution(content)),
        _section("Atoms", _atoms(content)),
        _section("Quality by tilt", _tilt_table(content.quality, content.length_unit)),
        _section("Parameters", [_table(_flat(content.parameters))] if content.parameters else []),
        _section("Provenance", _provenance(content)),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(content: ReportContent) -> str:
    subtitle = f"<p>{escape(content.subtitle)}</p>" if content.subtitle else ""
    return f"<header><h1>{escape(content.title)}</h1>{subtitle}</header>"


def _warnings(content: ReportContent) -> str:
    quality = (*content.quality.broken_limits, *content.quality.warnings) if content.quality else ()
    sentences = list(dict.fromkeys([*content.warnings, *quality]))
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _cards(content: ReportContent) -> str:
    cards: list[tuple[str, str]] = []
    if content.tilts:
        cards.append((f"{len(content.tilts)}", "tilt" if len(content.tilts) == 1 else "tilts"))
    quality = content.quality
    if quality and quality.data_error is not None:
        cards.append((f"{quality.data_error:.3g}", "data error"))
    if quality and quality.projection_error is not None:
        cards.append((f"{quality.projection_error:.1%}", "projection error R1"))
    if quality and quality.resolution and quality.resolution.half_bit is not None:
        limit = "≤ " if "half_bit" in quality.resolution.at_nyquist else ""
        cards.append((f"{limit}{quality.resolution.half_bit:.2f} {content.length_unit}", "resolution (half-bit)"))
    if content.atoms is not None:
        counts = content.atoms.counts()
        cards.append((f"{len(content.atoms)}", "atoms" + (f" ({_counts(counts)})" if len(counts) > 1 else "")))
    if content.timings:
        cards.append((_duration(sum(content.timings.values())), "wall time"))
    if not cards:
        return ""
    boxes = "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(label)}</span></div>' for v, label in cards)
    return f'<div class="cards">{boxes}</div>'


def _ptychography(content: ReportContent) -> list[str]:
    if not content.tilts:
        return []
    middle = content.tilts[len(content.tilts) // 2]
    pictures = [phase_montage(content.tilts), probe_modes(middle), error_curves(content.tilts)]
    if content.quality:
        pictures += [tilt_quality(content.quality.tilts, content.length_unit), mode_power_figure(content.quality.tilts)]
    pictures += [f(content.tilts) for f in (held_out_curves, residual_maps, drift_figure, ring_correlations)]
    return _pictures(pictures)


def _alignment(content: ReportContent) -> list[str]:
    if content.alignment is None:
        return []
    unit = content.length_unit
    return _pictures([alignment_figure(content.alignment, unit), sinogram_figure(content.alignment, unit)])


def _volume(content: ReportContent) -> list[str]:
    if content.volume is None:
        return []
    shape = " × ".join(str(n) for n in content.volume.volume.shape)
    note = f"<p>{shape} voxels (z × y × x) of {content.volume.voxel_size:.4g} {content.length_unit}.</p>"
    return [note, *_pictures([orthoslices(content.volume, content.length_unit), volume_convergence(content.volume)])]


def _resolution(content: ReportContent) -> list[str]:
    view, unit = content.resolution, content.length_unit
    quality = content.quality.resolution if content.quality else None
    pictures = [] if view is None else [correlation_figure(view, unit)]
    peaks = None if view is None else peak_spectra(view, unit)
    if peaks is None and content.volume is not None and (view is not None or quality is not None):
        peaks = power_spectra(content.volume, quality.half_bit if quality else None, unit)
    pictures.append(peaks)
    return _pictures(pictures) + ([] if quality is None else [_resolution_table(quality, unit)])


def _atoms(content: ReportContent) -> list[str]:
    if content.atoms is None:
        return []
    if len(content.atoms) == 0:
        return ["<p>No atom was found in the volume.</p>"]
    parts = _pictures([atom_projections(content.atoms), atom_histogram(content.atoms)])
    quality = content.quality.atoms if content.quality else None
    return parts + ([] if quality is None else _atom_tables(quality))


def _provenance(content: ReportContent) -> list[str]:
    parts = []
    if content.timings:
        rows = [(name, _duration(seconds)) for name, seconds in content.timings.items()]
        parts += ["<h3>Time by stage</h3>", _table(rows)]
    if content.provenance:
        parts += ["<h3>Origin</h3>", _table(_flat(content.provenance))]
    return parts


def _resolution_table(quality: ResolutionQuality, unit: str) -> str:
    def figure(name: str, value: float | None) -> str:
        limit = " (at Nyquist: limited by the voxel)" if name in quality.at_nyquist else ""
        return "not measured" if value is None else f"{value:.2f} {unit}{limit}"

    rows = [
        ("half-bit, all directions", figure("half_bit", quality.half_bit)),
        ("one-bit", figure("one_bit", quality.one_bit)),
        ("FSC = 0.143", figure("0.143", quality.fsc_0143)),
    ]
    rows += [(f"half-bit along {n}", figure(f"half_bit {n}", v)) for n, v in quality.half_bit_axes.items()]
    for name, value in quality.last_peak.items():
        rows.append((f"last peak, {name} (crystals only)", "no peak" if value is None else f"{value:.2f} {unit}"))
    return _table(rows)


def _atom_tables(quality: AtomQuality) -> list[str]:
    rows = [(name, str(count)) for name, count in quality.counts.items()]
    rows += [("median confidence", f"{quality.confidence:.3f}"), ("atoms below 0.9 confidence", str(quality.doubtful))]
    parts = [_table(rows)]
    if quality.comparison:
        head = ["species", "true", "found", "missing", "wrong species", "false"]
        body = [
            [name, s["true"], f"{s['found']} ({s['found_share']:.1%})", s["missing"], s["wrong_species"], s["false"]]
            for name, s in quality.comparison["species"].items()
        ]
        z, y, x = quality.comparison["rms_zyx_angstrom"]
        rms = f"rms displacement {quality.comparison['rms_angstrom']:.3f} Å (z {z:.3f}, y {y:.3f}, x {x:.3f})"
        parts += ["<h3>Against the known model</h3>", _grid(head, body), f"<p>{escape(rms)}</p>"]
    return parts


def _tilt_table(quality: QualityReport | None, unit: str) -> list[str]:
    if quality is None or not quality.tilts:
        return []
    columns: list[tuple[str, Callable[[TiltQuality], Any]]] = [
        ("tilt", lambda t: t.index),
        ("angle", lambda t: _number(t.tilt_deg, "+.2f", "°")),
        ("data error", lambda t: _number(t.data_error, ".4g")),
        ("held out", lambda t: _number(t.held_out_error, ".4g")),
        ("R factor", lambda t: _number(t.r_factor, ".4g")),
        ("deviance", lambda t: _number(t.deviance, ".3g")),
        ("log-likelihood", lambda t: _number(t.log_likelihood, ".4g")),
        (f"drift ({unit})", lambda t: _number(t.drift, ".3g")),
        (f"half-bit ({unit})", lambda t: _number(t.half_bit, ".2f")),
        (f"summed phase (rad·{unit}²)", lambda t: _number(t.mass, ".4g")),
        ("residues", lambda t: "–" if t.n_residues is None else t.n_residues),
        ("remark", lambda t: "doubtful unwrapping" if t.doubtful else ""),
    ]
    # A figure that no tilt has is left out
    shown = [(n, [f(t) for t in quality.tilts]) for n, f in columns]
    shown = [(n, cells) for n, cells in shown if n == "tilt" or any(c not in ("–", "") for c in cells)]
    head, body = [n for n, _ in shown], list(zip(*(cells for _, cells in shown)))
    table = _grid(head, body)
    return [table if len(body) <= 8 else f"<details><summary>{len(body)} tilts</summary>{table}</details>"]


def _section(title: str, parts: Sequence[str]) -> str:
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>" if parts else ""


def _pictures(pictures: Iterable[Picture | None]) -> list[str]:
    return [
        f'<figure><img src="{p.data}" width="{p.width}" alt="{escape(p.alt)}">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in pictures
        if p is not None
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in rows)
    return f'<div class="scroll"><table>{body}</table></div>'


def _grid(head: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    top = "".join(f"<th{'' if i == 0 else _NUMBER}>{escape(name)}</th>" for i, name in enumerate(head))
    rows = "".join(
        "<tr>" + "".join(f"<td{'' if i == 0 else _NUMBER}>{escape(str(v))}</td>" for i, v in enumerate(row)) + "</tr>"
        for row in body
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


_NUMBER = ' class="number"'


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested mappings as rows ("section.key", text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}{unit}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

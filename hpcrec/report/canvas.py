"""The drawing board of the report: one look for all figures, scale bars, and figures as inline data."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from hpcrec.backend.array import FloatArray

INK: Final = "#22303c"
MUTED: Final = "#7b8794"
SERIES: Final = ("#1f6fb2", "#d1602b", "#2f8f6b", "#8a5aa8", "#b08a1e", "#5b6770")
_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 100,
    "svg.hashsalt": "hpcrec",
    "image.interpolation": "nearest",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished figure: ``data`` a data URI, ``width`` CSS pixels, ``caption`` and ``alt`` plain text."""

    data: str
    width: int
    caption: str
    alt: str


@contextmanager
def style() -> Iterator[None]:
    """Draw and render with the report's look; matplotlib's own settings are put back afterwards."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` × ``height`` inches on its own canvas (no window, no global state)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, caption: str, alt: str, kind: Literal["png", "svg"] = "png") -> Picture:
    """Render a figure into a :class:`Picture`: PNG for images and clouds of points, SVG for curves."""
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=170, facecolor="white", metadata=metadata)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    data = f"data:{mime};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return Picture(data=data, width=round(100 * figure.get_figwidth()), caption=caption, alt=alt)


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=170, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def bare(axes: Any, title: str = "") -> None:
    """Turn axes into a plain picture frame with a title."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title)


def legend_above(axes: Any) -> None:
    """Put the legend on the right above the axes, beside the title, where it hides no data."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.97), ncols=3, handlelength=1.2, columnspacing=1.0)


def nice_length(length: float) -> float:
    """Return the largest of 1, 2, 5 × 10ⁿ that is not above ``length``."""
    if length <= 0:
        return 1.0
    decade = 10.0 ** np.floor(np.log10(length))
    return float(max(step * decade for step in (1, 2, 5) if step * decade <= length * (1 + 1e-9)))


def length_text(length: float, unit: str = "Å") -> str:
    """Return a length with its unit; ångström as Å, nm or µm, as suits it."""
    if unit != "Å" or length < 100:
        return f"{length:g} {unit}"
    return f"{length / 10:g} nm" if length < 1e4 else f"{length / 1e4:g} µm"


def scale_bar(axes: Any, shape: tuple[int, ...], pixel: float | None, unit: str = "Å") -> None:
    """Draw a bar of about a quarter of the width on an image (y, x); pixels of it where their size is unknown."""
    length = nice_length(shape[1] * (pixel or 1.0) / 3.5)
    size = length / (pixel or 1.0)
    x, y, thick = 0.05 * shape[1], 0.93 * shape[0], max(0.014 * shape[0], 0.8)
    axes.add_patch(Rectangle((x, y), size, thick, color="white", ec="black", lw=0.3))
    label = length_text(length, unit if pixel else "px")
    axes.text(
        x + size / 2, y - 0.015 * shape[0], label, color="white", ha="center", va="bottom", fontsize=7.5, weight="bold"
    ).set_path_effects(_outline())


def grey_range(images: list[FloatArray], low: float = 0.5, high: float = 99.8) -> tuple[float, float]:
    """Return one colour range for several images, from percentiles, never empty."""
    values = np.concatenate([np.ravel(image)[:: max(image.size // 50_000, 1)] for image in images])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return 0.0, 1.0
    bottom, top = (float(v) for v in np.percentile(values, (low, high)))
    return bottom, top if top > bottom else bottom + 1.0


def complex_image(wave: FloatArray) -> FloatArray:
    """Return RGB (y, x, 3) of a complex image: hue is the phase, brightness the modulus."""
    modulus = np.abs(wave)
    value = modulus / max(float(modulus.max()), 1e-30)
    hue = np.angle(wave) / (2 * np.pi) % 1.0
    hsv = np.stack([hue, np.full(hue.shape, 0.75), value**0.7], axis=-1)
    return np.asarray(mpl.colors.hsv_to_rgb(hsv), np.float64)


def _outline() -> list[Any]:
    return [withStroke(linewidth=1.6, foreground="black")]

"""The picture of a direct method, as a file of its own."""

from __future__ import annotations

import math
from typing import Final

from hpcrec.report.canvas import bare, grey_range, new_figure, png_bytes, scale_bar, style
from hpcrec.run.preview import Preview

_NAMES: Final = {
    "parallax": "parallax of the bright field",
    "ssb": "single side band",
    "wdd": "Wigner distribution deconvolution",
    "icom": "integrated centre of mass",
}


def preview_png(shown: Preview) -> bytes:
    """Return a PNG file: the image with a scale bar, its colour scale, what it is and how it was made."""
    dy, dx = shown.sampling
    height = shown.image.shape[0] * dy / (shown.image.shape[1] * dx)
    with style():
        figure = new_figure(5.6, min(max(4.4 * height, 2.0), 9.0) + 0.25 * len(shown.notes) + 0.6)
        axes = figure.subplots()
        low, high = grey_range([shown.image])
        drawn = axes.imshow(shown.image, cmap="magma", vmin=low, vmax=high, aspect=dy / dx)
        scale_bar(axes, shown.image.shape, dx, shown.length_unit)
        bare(axes, f"{_NAMES[shown.method]}, tilt {shown.tilt} ({math.degrees(shown.angle):+.1f}°)")
        figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.02, label=shown.quantity).outline.set_visible(False)
        if shown.notes:
            figure.supxlabel("\n".join(shown.notes), fontsize=7.5)
        return png_bytes(figure)

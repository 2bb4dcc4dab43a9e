"""Agreement between judges as a matrix: Cohen's kappa below the diagonal, raw agreement above, win rates on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.report.figures import Files, save_figure


def _cell(estimate: Mapping[str, Any], percent: bool) -> str:
    if estimate["value"] is None:
        return "-"
    parts = [
        f"{estimate[k]:.0%}" if percent else f"{estimate[k]:.2f}"
        for k in ("value", "low", "high")
        if estimate[k] is not None
    ]
    return parts[0] + (f"\n[{parts[1]}, {parts[2]}]" if len(parts) == 3 else "")


def agreement_matrix(report: Mapping[str, Any], path: Files) -> None:
    """PNG or SVG of what `agreement.agreement_report` gives, NaN as null."""
    names = list(report["judges"])
    k = len(names)
    kappas = np.full((k, k), np.nan)
    texts = [["" for _ in names] for _ in names]
    for i, name in enumerate(names):
        texts[i][i] = "A wins\n" + _cell(report["judges"][name]["win_rate"], True)
    for pair in report["pairs"]:
        i, j = sorted((names.index(pair["one"]), names.index(pair["other"])))
        value = pair["kappa"]["value"]
        kappas[i, j] = kappas[j, i] = np.nan if value is None else value
        texts[j][i], texts[i][j] = _cell(pair["kappa"], False), _cell(pair["agreement"], True)
    size = 2.6 + 1.25 * k
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(
        np.ma.masked_invalid(kappas), cmap="viridis", vmin=min(0.0, np.nanmin(kappas, initial=0.0)), vmax=1.0
    )
    for i in range(k):
        for j in range(k):
            dark = not np.isnan(kappas[i, j]) and kappas[i, j] < 0.6
            axis.text(j, i, texts[i][j], ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(k), names, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(k), names, fontsize=8)
    axis.set_title(f"{report['items']} pairs of answers: kappa below, raw agreement above (95%)", fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.7, label="Cohen's kappa")
    save_figure(figure, path)

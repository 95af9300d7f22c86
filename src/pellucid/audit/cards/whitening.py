"""The card of whitening layers: the spectrum of each layer's input before and after, and how far it is from white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pellucid.audit import figures
from pellucid.audit.vocabulary import Figure, Section, Table, Text
from pellucid.audit.words import short
from pellucid.core.network.fold import folded_module
from pellucid.whiten.base import Whitening

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.audit.audit import Audit


FLOOR = 1e-4  # smaller eigenvalues are drawn here


def whitening(audit: Audit) -> Section | None:
    """Spectra per layer, from the moments that the layers hold; None without a whitening layer."""
    layers = {name: layer for name, layer in audit.model.named_modules() if isinstance(layer, Whitening)}
    if not layers:
        return None
    if not all(int(layer.whiten.updates) for layer in layers.values()):
        return Section("Whitening", blocks=[Text("The whitening layers have not been trained yet.", "bad")])
    rows = [_measure(name, layer) for name, layer in layers.items()]
    before, after = (sum(row[key]["error"] for row in rows) / len(rows) for key in ("before", "after"))
    kept = [row["layer"] for row in rows if not row["folds"]]
    folds = "All fold into plain layers"
    if kept:
        folds = f"{len(rows) - len(kept)} of them fold into plain layers, {', '.join(kept)} do not"
    return Section(
        "Whitening",
        f"Over {len(rows)} layers the mean distance from white is {after:.2f}, and {before:.2f} before whitening. "
        f"{folds}.",
        [
            Figure(
                figures.draw(
                    lambda axes: _spectra(axes, rows),
                    title="Spectra before and after whitening",
                    description=f"Range of eigenvalues per layer; mean distance from white {before:.2f} before, "
                    f"{after:.2f} after.",
                    height=30 * len(rows) + 90,
                ),
                "Eigenvalues of the covariance of each layer's input, divided by their mean: the line spans the middle "
                f"90 %, the dot is the median, and {FLOOR:g} stands for anything smaller; a white input has 1. A few "
                "Newton steps leave small eigenvalues small on purpose: amplifying them fully trains worse.",
                Table(
                    "Whitening per layer",
                    ["Layer", "Blocks", "Features", "Distance before", "Distance after", "Folds"],
                    [
                        [
                            row["layer"],
                            f"{row['blocks']}",
                            f"{row['features']}",
                            f"{row['before']['error']:.2f}",
                            f"{row['after']['error']:.2f}",
                            "yes" if row["folds"] else "no",
                        ]
                        for row in rows
                    ],
                    numeric=(1, 2, 3, 4),
                ),
            ),
            Text(
                "The distance from white is |A - I| / sqrt(F) in the Frobenius norm, with A the covariance of F "
                "features divided by its mean eigenvalue; the distance before whitening is thus what rescaling alone "
                "would reach. The moments are the running ones of training."
            ),
        ],
        {
            "layers": {row.pop("layer"): row for row in [dict(row) for row in rows]},
            "error_before": before,
            "error_after": after,
        },
    )


def _measure(name: str, layer: Whitening) -> dict[str, Any]:
    cov = layer.whiten.running_cov.detach().cpu().double()
    root = layer.whiten.root.detach().cpu().double()
    present = cov.diagonal(dim1=-2, dim2=-1) > 0  # channels that only fill up a block are always 0
    return {
        "layer": name,
        "blocks": cov.shape[0],
        "features": cov.shape[-1],
        "folds": folded_module(layer, 2 if "Linear" in type(layer).__name__ else 4) is not None,
        "before": _spectrum(cov, present),
        "after": _spectrum(root @ cov @ root.mT, present),
    }


def _spectrum(cov: torch.Tensor, present: torch.Tensor) -> dict[str, Any]:
    """Distance from white and quantiles of the eigenvalues over all blocks, each divided by its mean eigenvalue."""
    errors, eigenvalues = [], []
    for block, real in zip(cov, present, strict=True):
        block = block[real][:, real]
        values = torch.linalg.eigvalsh(block).clamp_min(0)
        if not len(values) or not values.mean() > 0:
            continue  # a dead input
        values = values / values.mean()
        errors.append((values - 1).square().mean().sqrt())
        eigenvalues.append(values)
    if not errors:
        return {"error": 1.0, "quantiles": [0.0, 0.0, 0.0]}
    spread = torch.quantile(torch.cat(eigenvalues), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    return {"error": float(torch.stack(errors).mean()), "quantiles": spread.tolist()}


def _spectra(axes: Axes, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import NullLocator

    for place, row in enumerate(rows):
        for key, colour, shift in (("before", figures.ORANGE, -0.15), ("after", figures.BLUE, 0.15)):
            low, middle, high = (max(value, FLOOR) for value in row[key]["quantiles"])
            label = key if place == 0 else None
            axes.plot([low, high], [place + shift] * 2, color=colour, linestyle="--" if key == "before" else "-")
            axes.plot([middle], [place + shift], "o", color=colour, markersize=5, label=label)
    axes.axvline(1, color=figures.MUTED, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(left=FLOOR / 1.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [short(row["layer"], 18) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("eigenvalue / mean eigenvalue")
    axes.grid(axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)

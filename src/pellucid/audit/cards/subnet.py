"""The card of subnetworks: how many weights each layer keeps, and where, compared with random masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pellucid.audit import figures
from pellucid.audit.vocabulary import Figure, Section, Table, Text
from pellucid.audit.words import short
from pellucid.core.network.plain import TRANSPOSED
from pellucid.core.seeds import seed_of
from pellucid.edgepopup.layers import Layer, masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.audit.audit import Audit

DRAWS = 40  # random masks per layer
WHERE = ("filters", "inputs", "positions")


def subnet(audit: Audit) -> Section | None:
    """The kept weights per layer; None without a masked layer."""
    found = [(name, layer, mask.mask().cpu()) for name, layer, mask in masks(audit.model)]
    if not found:
        return None
    rows = {
        name: _measure(_arranged(layer, chosen), seed_of("masks", audit.seed, name)) for name, layer, chosen in found
    }
    kept, weights = (sum(row[key] for row in rows.values()) for key in ("kept", "weights"))
    uneven = {where: sum(row[where]["spread"] > row[where]["random"][1] for row in rows.values()) for where in WHERE}
    words = ", ".join(f"{uneven[where]} over {where}" for where in WHERE)
    return Section(
        "Subnetwork",
        f"{100 * kept / weights:.1f} % of {weights:,} random weights are kept. Layers, of {len(rows)}, whose kept "
        f"weights are spread less evenly than at random: {words}.",
        [
            Figure(
                figures.draw(
                    lambda axes: _spreads(axes, rows),
                    title="Where the kept weights are",
                    description="Unevenness of the kept weights per layer; 1 for a random mask. Above its range: "
                    f"{words}.",
                    height=34 * len(rows) + 90,
                ),
                "How unevenly the kept weights of each layer are spread over its filters (outputs), its inputs and the "
                "positions of its kernel: the variance of their counts, divided by that of a random mask of the same "
                f"density. The bar is the range of {DRAWS} random masks.",
                Table(
                    "Kept weights per layer",
                    ["Layer", "Weights", "Kept", *(f"{where} (random)" for where in WHERE), "Empty filters (random)"],
                    [
                        [
                            name,
                            f"{row['weights']}",
                            f"{100 * row['share']:.1f} %",
                            *(_words(row[where]) for where in WHERE),
                            f"{row['filters']['empty']} ({row['filters']['random_empty']:.1f})",
                        ]
                        for name, row in rows.items()
                    ],
                    numeric=(1, 2, 3, 4, 5, 6),
                ),
            ),
            Text(
                "An empty filter keeps none of its weights, and its output is 0 for every image. The random masks keep "
                "exactly as many weights as the layer."
            ),
        ],
        {"share": kept / weights, "kept": kept, "weights": weights, "uneven": uneven, "layers": rows},
    )


def _arranged(layer: nn.Module, chosen: Tensor) -> Tensor:
    """The mask (O, I, K) by filter, input and kernel position; I is the inputs of one group."""
    assert isinstance(layer, Layer)
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, ...)
        grouped = chosen.unflatten(0, (layer.groups, -1)).transpose(1, 2)
        chosen = grouped.flatten(0, 1)
    return chosen.reshape(*chosen.shape[:2], -1)


def _measure(chosen: Tensor, seed: int) -> dict[str, Any]:
    """Counts and unevenness of one mask (O, I, K), and of random ones."""
    n, kept = chosen.numel(), int(chosen.sum())
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(DRAWS):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.randperm(n, generator=generator)[:kept]] = True
        drawn.append(_counts(mask.view_as(chosen)))
    row: dict[str, Any] = {"weights": n, "kept": kept, "share": kept / n}
    for where, counts in _counts(chosen).items():
        random = sorted(_spread(counts_of[where], n, kept) for counts_of in drawn)
        row[where] = {"spread": _spread(counts, n, kept), "random": [random[0], random[-1]]}
    row["filters"]["empty"] = int((_counts(chosen)["filters"] == 0).sum())
    row["filters"]["random_empty"] = sum(int((counts["filters"] == 0).sum()) for counts in drawn) / DRAWS
    return row


def _counts(chosen: Tensor) -> dict[str, Tensor]:
    """How many weights are kept in each filter, from each input, at each position."""
    axes = {"filters": (1, 2), "inputs": (0, 2), "positions": (0, 1)}
    return {where: chosen.sum(axes[where]) for where in WHERE}


def _spread(counts: Tensor, n: int, kept: int) -> float:
    """Variance of the counts about their mean, over that of a random mask (hypergeometric); 1 if that is 0."""
    size, p = n / len(counts), kept / n
    expected = size * p * (1 - p) * (n - size) / max(1, n - 1)
    return float((counts.double() - size * p).square().mean() / expected) if expected > 0 else 1.0


def _words(entry: dict[str, Any]) -> str:
    low, high = entry["random"]
    return f"{entry['spread']:.2f} ({low:.2f} to {high:.2f})"


def _spreads(axes: Axes, rows: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import NullLocator

    floor, colours = 0.05, (figures.BLUE, figures.ORANGE, figures.GREEN)
    for place, row in enumerate(rows.values()):
        for where, colour, shift in zip(WHERE, colours, (-0.2, 0, 0.2), strict=True):
            low, high = (max(value, floor) for value in row[where]["random"])
            axes.plot([low, high], [place + shift] * 2, color=figures.RULE, linewidth=5)
            label = where if place == 0 else None
            axes.plot([max(row[where]["spread"], floor)], [place + shift], "o", color=colour, markersize=5, label=label)
    axes.axvline(1, color=figures.MUTED, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [short(name, 18) for name in rows])
    axes.invert_yaxis()
    axes.set_xlabel("unevenness (random mask: 1)")
    axes.grid(axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)

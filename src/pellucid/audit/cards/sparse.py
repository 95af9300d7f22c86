"""The cards of sparse-coding layers: how sparse their codes are, what they leave unexplained, and their atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.audit import figures
from pellucid.audit.thumbnails import thumbnail
from pellucid.audit.vocabulary import Figure, Picture, Section, Strip, Table, Text
from pellucid.audit.words import percent, short
from pellucid.core.network.tap import tap
from pellucid.sparse.layers import CSC

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.audit.audit import Audit

LIMIT, LARGE_LIMIT = 500, 100  # test images read
SHOWN = 24  # atoms shown of the model
SHOWN_PER_CLASS = 6


@dataclass(frozen=True, eq=False)
class _Reading:
    """The codes of some test images.

    Attributes:
        rows: numbers per layer.
        name, layer: the first layer.
        means: (classes, K) mean absolute entry of each atom of the first layer, per class.
        counts: (classes,) images.
    """

    rows: list[dict[str, Any]]
    name: str
    layer: CSC
    means: Tensor
    counts: Tensor


def sparse(audit: Audit) -> Section | None:
    """Density and residual per layer, and the dictionary of the first; None without a sparse-coding layer."""
    read = _reading(audit)
    if read is None:
        return None
    rows = read.rows
    first = rows[0]
    n = int(read.counts.sum())
    which = f"In the first of {len(rows)} sparse-coding layers" if len(rows) > 1 else "In the sparse-coding layer"
    usage = (read.means * (read.counts / n).unsqueeze(1)).sum(0)
    order = usage.argsort(descending=True, stable=True)
    unused = int((usage == 0).sum())
    blocks: list[Any] = []
    if len(rows) > 1:
        blocks.append(
            Figure(
                figures.draw(
                    lambda axes: _bars(axes, rows),
                    title="Density and residual per layer",
                    description=f"First layer: {percent(first['density'])} of the entries are non-zero; "
                    f"{percent(first['residual'])} of the input's energy is unexplained.",
                    height=26 * len(rows) + 90,
                ),
                "Density: fraction of the code's entries that are non-zero. Residual: fraction of the energy of the "
                "layer's input that its code leaves unexplained. Both with as many steps as in training.",
                _table(rows),
            )
        )
    else:
        blocks.append(_table(rows))
    blocks.append(
        Text(
            "A few steps do not reach the sparse solution: after two steps a code is far denser than the exact one. "
            "Run a network with the number of steps that it was trained with."
        )
    )
    blocks.append(
        Strip(
            f"Atoms of {read.name}, most used first, each on its own scale around grey"
            + (f"; {unused} of {len(usage)} are never used" if unused else ""),
            [
                Picture(tile, f"{number}", f"Atom {number} of {read.name}", note=f"{fraction:.0%}")
                for number, tile, fraction in zip(
                    order[:SHOWN].tolist(),
                    _tiles(read.layer, order[:SHOWN]),
                    (usage[order] / usage.sum().clamp_min(1e-30)).tolist(),
                    strict=False,
                )
            ],
        )
    )
    return Section(
        "Sparse codes",
        f"{which}, {percent(first['density'])} of the code's entries are non-zero and {percent(first['residual'])} of "
        f"the input's energy is unexplained ({n} test images).",
        blocks,
        {"n": n, "layers": {row["layer"]: {k: v for k, v in row.items() if k != "layer"} for row in rows}},
    )


def class_atoms(audit: Audit, index: int) -> Section | None:
    """The atoms of the first layer that a class uses more than the other classes do."""
    read = _reading(audit)
    if read is None or not read.counts[index]:
        return None
    others = read.counts.clone()
    others[index] = 0
    elsewhere = (read.means * others.unsqueeze(1)).sum(0) / others.sum().clamp_min(1)
    ratio = read.means[index] / elsewhere.clamp_min(1e-12)
    used = read.means[index] > 1e-3 * read.means[index].max().clamp_min(1e-30)
    order = torch.where(used, ratio, 0).argsort(descending=True, stable=True)[:SHOWN_PER_CLASS]
    chosen = [int(number) for number in order if used[number] and ratio[number] > 1]
    name = audit.classes[index]
    shown = [
        Picture(
            tile,
            f"{number}",
            f"Atom {number}, used {ratio[number]:.1f} times as much in {name}",
            note=f"× {ratio[number]:.1f}",
        )
        for number, tile in zip(chosen, _tiles(read.layer, torch.tensor(chosen, dtype=torch.int64)), strict=True)
    ]
    caption = (
        f"Atoms of {read.name} that images of this class use more than others, and how many times as much "
        f"({int(read.counts[index])} test images)"
    )
    data = {"atoms": chosen, "ratio": [round(float(ratio[number]), 3) for number in chosen]}
    return Section("Atoms", blocks=[Strip(caption, shown, "None is used more than in other classes.")], data=data)


def _reading(audit: Audit) -> _Reading | None:
    layers = {name: layer for name, layer in audit.model.named_modules() if isinstance(layer, CSC)}
    return audit.once("sparse", lambda: _read(audit, layers)) if layers else None


@torch.no_grad()
def _read(audit: Audit, layers: dict[str, CSC]) -> _Reading | None:
    """One pass over some test images; None if no layer runs."""
    sums: dict[str, list[float]] = {name: [0.0] * 4 for name in layers}
    steps = {name: layer.n_steps for name, layer in layers.items()}
    chosen = audit.sample(LARGE_LIMIT if audit.large else LIMIT)
    first: str | None = None
    means = counts = torch.zeros(0)
    for rows in chosen.split(50):
        with tap(audit.model, layers) as taps:
            audit.forward(audit.images(rows))
        first = first or next((name for name in layers if taps[name].calls), None)
        if first is None:
            return None
        labels = audit.labels[rows]
        strength = taps[first].output.abs().flatten(2).mean(2).float().cpu()
        if not len(means):
            means, counts = torch.zeros(len(audit.classes), strength.shape[1]), torch.zeros(len(audit.classes))
        means.index_add_(0, labels, strength)
        counts += labels.bincount(minlength=len(counts))
        for name, layer in layers.items():
            seen = taps[name]
            if seen.calls:
                residual = layer.residual(seen.input, seen.output)
                total = sums[name]
                total[0] += float((seen.output != 0).sum())
                total[1] += seen.output.numel()
                total[2] += float(residual.square().sum()) / layer.n_dict
                total[3] += float(seen.input.float().square().sum())
    table = [
        {
            "layer": name,
            "atoms": layers[name].out_channels,
            "steps": steps[name],
            "lam": float(layers[name].lam),
            "density": total[0] / max(total[1], 1),
            "residual": total[2] / max(total[3], 1e-30),
        }
        for name, total in sums.items()
        if total[1]
    ]
    assert first is not None
    return _Reading(table, first, layers[first], means / counts.clamp_min(1).unsqueeze(1), counts)


def _tiles(layer: CSC, numbers: Tensor) -> list[Any]:
    """Pictures of atoms: in colour if they have three channels, else their mean over channels."""
    atoms = layer.atoms.detach().float().cpu()[numbers].unflatten(1, (layer.n_dict, layer.in_channels)).mean(1)
    if atoms.dim() == 3:
        atoms = atoms.unsqueeze(2)
    elif atoms.dim() == 5:
        atoms = atoms.mean(2)
    largest = atoms.abs().flatten(1).amax(1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
    times = max(1, 48 // max(atoms.shape[2:]))
    tiles = (0.5 + 0.5 * atoms / largest).repeat_interleave(times, 2).repeat_interleave(times, 3)
    return [thumbnail(tile) for tile in tiles]


def _table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "Codes per layer",
        ["Layer", "Atoms", "Steps", "Lambda", "Density", "Residual"],
        [
            [
                row["layer"],
                str(row["atoms"]),
                str(row["steps"]),
                f"{row['lam']:g}",
                percent(row["density"]),
                percent(row["residual"]),
            ]
            for row in rows
        ],
        numeric=(1, 2, 3, 4, 5),
    )


def _bars(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        labels = ("density", "residual") if place == 0 else (None, None)
        axes.plot([row["density"], row["residual"]], [place, place], color=figures.MUTED, linewidth=1)
        axes.plot([row["density"]], [place], "o", color=figures.BLUE, markersize=6, label=labels[0])
        axes.plot([row["residual"]], [place], "s", color=figures.ORANGE, markersize=6, label=labels[1])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_yticks(range(len(rows)), [short(row["layer"], 18) for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)

"""What `pellucid convert` and `pellucid fold` share: a few images to check with, and the table of changed layers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.core.data.splits import Split
    from pellucid.core.network.swap import Changes
    from pellucid.core.source import Source


def images_of(source: Source, images: Split, count: int, batch_size: int, seed: int) -> list[Tensor]:
    """At most `count` of these images, sampled with `seed`, in batches as the model expects them."""
    from pellucid.core.data.batches import batches
    from pellucid.core.measure.fits import check_fits, normalization

    check_fits(source.model, source.dataset)
    norm = normalization(source.model, source.dataset)
    size = min(count, batch_size)
    found: list[Tensor] = []
    # Shuffled, because class folders are read class by class.
    for batch in batches(
        images,
        size,
        mean=norm.mean,
        std=norm.std,
        device=source.device,
        shuffle=True,
        seed=seed,
    ):
        found.append(batch.images[: count - sum(map(len, found))])
        if sum(map(len, found)) >= count:
            break
    return found


def show_changes(title: str, changes: Changes | None) -> None:
    """Print a table of changes, one row per pair of layer types, and the layers that stay with the reason."""
    from pellucid.core import terminal

    left = changes.left if changes is not None else {}
    pairs: dict[tuple[str, str], list[Any]] = {}
    for change in changes or ():
        pairs.setdefault((change.old.partition("(")[0], change.new.partition("(")[0]), []).append(change)
    rows = []
    for (old, new), same in pairs.items():
        names = [change.names[0] for change in same]
        where = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        growth = sum(change.parameters_after - change.parameters_before for change in same)
        rows.append([old, "out of place" if old == new else new, len(same), where, f"{growth:+d}"])
    terminal.show(title, ["was", "is", "layers", "where", "parameters"], rows)
    for name, why in list(left.items())[:5]:
        terminal.say(f"Left: {name}: {why}")
    if len(left) > 5:
        terminal.say(f"... and {len(left) - 5} more")


def to_json(changes: Changes | None) -> dict[str, Any]:
    """The same as plain JSON values: "changes", a list with one entry per layer, and "left", reasons by name."""
    rows = [dataclasses.asdict(change) for change in changes or ()]
    return {"changes": rows, "left": changes.left if changes is not None else {}}

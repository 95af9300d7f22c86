"""What is left of a network with a few filters per class: accuracies next to their controls, as rows of a table.

All heads are scored in a single pass over the test images; the network is not copied for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pellucid.classfilters.accuracy import Sets
from pellucid.classfilters.compare_heads import FULL, compare_heads
from pellucid.classfilters.controls import CHOSEN, DRAWS, Row, compare, draw_like, mean_size
from pellucid.classfilters.evidence import Evidence
from pellucid.classfilters.fit import fit as fit_network
from pellucid.classfilters.fit import fit_heads
from pellucid.classfilters.gates import class_gates
from pellucid.classfilters.head import DecomposedHead, head_of
from pellucid.classfilters.install import cut, decomposed, head_from
from pellucid.classfilters.overlap import jaccard, mutual_information
from pellucid.classfilters.rules import as_filters
from pellucid.classfilters.sets import ClassFilters
from pellucid.core.errors import InputError
from pellucid.core.measure.share import Share
from pellucid.core.source import Source

GATES = "gates"


@dataclass(frozen=True)
class Judge:
    """Scores heads on the test images of a source.

    Attributes:
        source: the network and its data.
        seen: the pass in which the filters were found.
        classes: the classes to distinguish, in their order; None: all.
        split: part of the data that heads are fitted on.
        seed: of random sets and of the order of training.
        batch_size, workers: as in `decompose`.
    """

    source: Source
    seen: Evidence
    classes: list[str] | None
    split: str
    seed: int
    batch_size: int
    workers: int

    def rows(self, filters: ClassFilters, gates: ClassFilters | None) -> list[dict[str, Any]]:
        """Accuracy of the full model, with `filters`, with `gates` (if they are others), and with random filters."""
        refit = filters.weights is not None
        full: dict[str, Tensor] = {}

        def score(named: Mapping[str, Sets]) -> dict[str, Tensor]:
            given = {CHOSEN: filters, GATES: gates}
            heads = {
                name: head_from(self.source.model, given.get(name) or as_filters(self.seen, sets, name, refit=refit))
                for name, sets in named.items()
            }
            right = self.right(self.source.model, heads)
            full[FULL] = right[FULL]
            return right

        others = {} if gates is None or gates is filters else {GATES: gates.indices}
        found = compare(score, filters.indices, filters.width, others=others, seed=self.seed)
        whole = Row(filters.width, full[FULL][None])
        return [
            row("full model", whole.share, whole.filters),
            row(f"{filters.rule}, {'refit' if refit else 'not fitted'}", found.chosen.share, found.chosen.filters),
            *(row(f"{name}, not fitted", one.share, one.filters) for name, one in found.others.items()),
            row(f"random, mean and range of {DRAWS}", found.random.share, found.random.filters, found.random.range),
        ]

    def network(self, filters: ClassFilters, fit: str, *, soft_labels: bool) -> tuple[nn.Module, list[dict[str, Any]]]:
        """The decomposed network; if a `fit` ("head" or "network") is asked for, fitted, and the rows of the fit.

        Below the row of the fitted filters is that of one draw of random ones, fitted likewise.
        """
        model, data = self.source.model, self.source.dataset
        if fit == "none":
            return decomposed(model, filters, self.classes), []
        (drawn,) = draw_like(filters.indices, filters.width, draws=1, seed=self.seed)
        random = as_filters(self.seen, drawn, "random", refit=filters.weights is not None)
        teacher = model if soft_labels else None
        run: dict[str, Any] = {"teacher": teacher, "split": self.split, "workers": self.workers}
        if fit == "head":
            own, other = head_from(model, filters), head_from(model, random)
            fit_heads(model, [own, other], data, batch_size=self.batch_size, **run)
            right = self.right(model, {"own": own, "other": other})
            found = decomposed(model, filters, self.classes, head=own)
        else:
            found, control = decomposed(model, filters), decomposed(model, random)
            right = {}
            for name, network in (("own", found), ("other", control)):
                fit_network(network, data, "network", seed=self.seed, **run)
                right |= self.right(network, {name: head_of(network)})
            found = found if self.classes is None else cut(found, self.classes)
        size = mean_size(filters.indices)
        titles = {"own": f"{filters.rule}, {fit} fitted", "other": f"random (1 draw), {fit} fitted"}
        return found, [row(title, Share.of(right[name]), size) for name, title in titles.items()]

    def right(self, model: nn.Module, heads: Mapping[str, DecomposedHead]) -> dict[str, Tensor]:
        """For each head, and for the model's own, which test images are classified correctly."""
        names = list(self.source.dataset.classes)
        outputs = None if self.classes is None else [names.index(name) for name in self.classes]
        return compare_heads(
            model,
            heads if outputs is None else {name: head.subset(outputs) for name, head in heads.items()},
            self.source.dataset,
            outputs=outputs,
            batch_size=self.batch_size,
            workers=self.workers,
        )


def row(what: str, share: Share, filters: float, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    """One row of the table of accuracies.

    Args:
        what: its title.
        share: correctly classified images.
        filters: mean number of filters per class.
        interval: default Wilson's at 95 %.
    """
    return {
        "what": what,
        "filters": filters,
        "accuracy": share.value,
        "interval": list(interval or share.interval),
        "n": share.n,
    }


def gates_of(source: Source, layer: str, k: int, budget: int | None, *, required: bool) -> ClassFilters | None:
    """The gates of `layer` that the run trained, as sets; None if there are none.

    Raises:
        InputError: there are none, but they are `required`.
    """
    try:
        if source.run is None:
            raise InputError(f"{source.title!r} is not a run, and only a run has gates: name its folder.")
        gates = class_gates(source.run, k, budget=budget)
        if gates.layer != layer:
            raise InputError(f"The gates of {source.title!r} are of {gates.layer!r}: name it with --layer.")
    except InputError:
        if required:
            raise
        return None
    return gates


def set_scores(what: str, sets: Sets, width: int) -> dict[str, Any]:
    """Jaccard overlap of the classes' sets, its chance level, and their mutual information as published."""
    overlap = jaccard(sets, width)
    nats = mutual_information(sets, width).mean
    return {"what": what, "jaccard": overlap.mean, "chance": overlap.chance, "nats": nats}

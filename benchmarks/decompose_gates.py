"""Class-specific gates and the selectivity regulariser beside plain training, on digits, three seeds.

    python benchmarks/decompose_gates.py

The published comparison of filters found after training with filters assigned by gates took each class's smallest
gates; both ends are here. Accuracy is of the untrained last layer on five of 64 filters a class, on 450 test images.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pellucid import TrainSettings, load_data, train
from pellucid.classfilters.ablation import essentiality
from pellucid.classfilters.compare_heads import accuracies
from pellucid.classfilters.evidence import measure
from pellucid.classfilters.gates import class_gates
from pellucid.classfilters.head import head_of
from pellucid.classfilters.install import decomposed
from pellucid.classfilters.overlap import jaccard, mutual_information
from pellucid.classfilters.responses import responses
from pellucid.classfilters.rules import choose
from pellucid.classfilters.selectivity import class_selectivity
from pellucid.classfilters.sets import ClassFilters
from pellucid.core.measure.pairs import open_data
from results import record

K, SEEDS = 5, (0, 1, 2)
PLAIN = TrainSettings(model="resnet20", epochs=18, batch_size=64, schedule="one-cycle", warmup=0.2)
GATES = {"sparsity": 0.05}
KINDS = {
    "plain": ("cross-entropy", {}),
    "gates": ("class-gates", GATES),
    "against": ("selectivity", {"alpha": -1.0}),
    "for": ("selectivity", {"alpha": 1.0}),
}
TITLES = {"plain": "trained plainly", "gates": "trained with gates"}


def main() -> None:
    torch.set_num_threads(1)
    data = load_data("digits")
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for kind, (objective, options) in KINDS.items():
                settings = replace(PLAIN, objective=objective, objective_options=options, seed=seed)
                trained = train(settings, Path(folder) / f"{kind}-{seed}", quiet=True)
                features, labels, head = responses(trained.model, open_data(trained.model, data, "test"))
                full = 100 * trained.result["test"]["top1"]
                index = float(class_selectivity(features, labels, 10).mean())
                rows.setdefault((kind, "selectivity"), []).append({"full": full, "index": index})
                if kind not in TITLES:
                    continue
                found = measure(trained.model, data, tops=(K,))
                sets = {rule: choose(found, K, rule, seed=seed) for rule in ("frequency", "evidence", "random")}
                if kind == "gates":
                    gates = class_gates(trained.run, K)
                    sets["gates"] = gates
                    sets["smallest"] = ends(gates)
                heads = {name: head_of(decomposed(trained.model, chosen)) for name, chosen in sets.items()}
                right, n = accuracies(trained.model, heads, data)
                for name, chosen in sets.items():
                    shared = jaccard(chosen.indices, chosen.width)
                    essential = essentiality(features, labels, head.weight, head.bias, chosen.indices, seed=seed)
                    rows.setdefault((kind, name), []).append(
                        {
                            "full": full,
                            "accuracy": 100 * right[name] / n,
                            "nats": mutual_information(chosen.indices, chosen.width).mean,
                            "overlap": shared.mean,
                            "chance": shared.chance,
                            "own": 100 * essential.influential.balanced,
                            "rest": 100 * essential.rest.balanced,
                        }
                    )
                print(seed, kind, full, flush=True)
    write(rows)


def ends(gates: ClassFilters) -> ClassFilters:
    """The filters of each class's smallest gates, as the published comparison took them."""
    indices = tuple(tuple(row.argsort(stable=True)[:K].tolist()) for row in gates.scores)
    return replace(gates, indices=indices, shares=tuple((0.0,) * K for _ in indices))


def write(rows: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    names = {"gates": "largest gates", "smallest": "smallest gates, as published"}
    facts = {"unit": "%", "n": len(SEEDS), "seed": "0 to 2", "interval_is": "mean, range of 3 seeds"}
    for (kind, name), seen in rows.items():
        mean = {key: statistics.fmean(row[key] for row in seen) for key in seen[0]}
        if name == "selectivity":
            options = KINDS[kind][1]
            claim = f"alpha = {options['alpha']:g}" if "alpha" in options else TITLES[kind]
            shown = {"mean_index": f"{mean['index']:.3f}"}
            record(f"decompose-selectivity-{kind}", claim, "", spread([r["full"] for r in seen]), **shown, **facts)
            continue
        shown = {
            "full_model": f"{mean['full']:.1f} %",
            "mutual_information": f"{mean['nats']:.4f}",
            "Jaccard": f"{mean['overlap']:.3f} (chance {mean['chance']:.3f})",
            "noise_on_own": f"{mean['own']:.1f} %",
            "noise_on_rest": f"{mean['rest']:.1f} %",
        }
        claim = f"{TITLES[kind]}: {names.get(name, f'`{name}`')}"
        record(
            f"decompose-gates-{kind}-{name}", claim, "", spread([r["accuracy"] for r in seen]), k=K, **shown, **facts
        )


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.fmean(values), min(values), max(values)


if __name__ == "__main__":
    main()

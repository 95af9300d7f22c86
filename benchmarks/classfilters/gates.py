"""Class-specific gates and the selectivity regulariser compared with plain training, on digits, three seeds.

    python benchmarks/classfilters/gates.py

The published comparison of filters found after training with filters assigned by gates took the smallest gates of each
class; both ends are measured here. Accuracy is that of the untrained last layer on five of 64 filters per class, on 450
test images. Appends one line per trained network to results/classfilters/gates.jsonl, and skips those that are there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.record import RESULTS, Row, mean_and_range, record, run_rows
from pellucid import TrainSettings, load_data, train
from pellucid.classfilters.ablation import essentiality
from pellucid.classfilters.compare_heads import compare_heads
from pellucid.classfilters.controls import draw_like
from pellucid.classfilters.evidence import measure
from pellucid.classfilters.gates import class_gates
from pellucid.classfilters.install import head_from
from pellucid.classfilters.overlap import jaccard, mutual_information
from pellucid.classfilters.responses import responses
from pellucid.classfilters.rules import as_filters, choose
from pellucid.classfilters.selectivity import class_selectivity
from pellucid.classfilters.sets import ClassFilters
from pellucid.core.measure.pairs import open_data

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
    keys = [{"kind": kind, "seed": seed} for seed in SEEDS for kind in KINDS]
    write(run_rows(RESULTS / "classfilters" / "gates.jsonl", keys, run))


def run(kind: str, seed: int) -> Row:
    """Train one network; its accuracy and selectivity in per cent, and what each choice of filters scores."""
    data = load_data("digits")
    objective, options = KINDS[kind]
    settings = replace(PLAIN, objective=objective, objective_options=options, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(settings, Path(folder) / "run", quiet=True)
        features, labels, head = responses(trained.model, open_data(trained.model, data, "test"))
        full = 100 * trained.result["test"]["top1"]
        row = {"full": full, "index": float(class_selectivity(features, labels, 10).mean()), "sets": {}}
        if kind not in TITLES:
            return row
        found = measure(trained.model, data, tops=(K,))
        sets = {rule: choose(found, K, rule) for rule in ("frequency", "evidence")}
        (drawn,) = draw_like(sets["evidence"].indices, found.width, draws=1, seed=seed)
        sets["random"] = as_filters(found, drawn, "random")
        if kind == "gates":
            gates = class_gates(trained.run, K)
            sets |= {"gates": gates, "smallest": smallest(gates)}
        heads = {name: head_from(trained.model, chosen) for name, chosen in sets.items()}
        right = compare_heads(trained.model, heads, data)
        for name, chosen in sets.items():
            shared = jaccard(chosen.indices, chosen.width)
            essential = essentiality(features, labels, head.weight, head.bias, chosen.indices, seed=seed)
            row["sets"][name] = {
                "accuracy": 100 * float(right[name].double().mean()),
                "nats": mutual_information(chosen.indices, chosen.width).mean,
                "overlap": shared.mean,
                "chance": shared.chance,
                "own": 100 * essential.influential.balanced,
                "rest": 100 * essential.rest.balanced,
            }
    return row


def smallest(gates: ClassFilters) -> ClassFilters:
    """The filters of each class's smallest gates, which the published comparison took."""
    indices = tuple(tuple(row.argsort(stable=True)[:K].tolist()) for row in gates.scores)
    return replace(gates, indices=indices, shares=tuple((0.0,) * K for _ in indices))


def write(rows: list[Row]) -> None:
    names = {"gates": "largest gates", "smallest": "smallest gates, as published"}
    facts = {"unit": "%", "n": len(SEEDS), "seed": "0 to 2", "interval_is": "mean, range of 3 seeds"}
    for kind, (_, options) in KINDS.items():
        mine = [row for row in rows if row["kind"] == kind]
        fulls = [row["full"] for row in mine]
        claim = f"alpha = {options['alpha']:g}" if "alpha" in options else TITLES[kind]
        index = f"{statistics.fmean(row['index'] for row in mine):.3f}"
        record(f"classfilters/selectivity-{kind}", claim, "", mean_and_range(fulls), mean_index=index, **facts)
        for name in mine[0]["sets"]:
            found = [row["sets"][name] for row in mine]
            mean = {key: statistics.fmean(each[key] for each in found) for key in found[0]}
            record(
                f"classfilters/gates-{kind}-{name}",
                f"{TITLES[kind]}: {names.get(name, f'`{name}`')}",
                "",
                mean_and_range([each["accuracy"] for each in found]),
                k=K,
                full_model=f"{statistics.fmean(fulls):.1f} %",
                mutual_information=f"{mean['nats']:.4f}",
                Jaccard=f"{mean['overlap']:.3f} (chance {mean['chance']:.3f})",
                noise_on_own=f"{mean['own']:.1f} %",
                noise_on_rest=f"{mean['rest']:.1f} %",
                **facts,
            )


if __name__ == "__main__":
    main()

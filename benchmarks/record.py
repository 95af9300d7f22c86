"""Record what a benchmark measured: one JSON file per claim in `results/`, one log line per finished run."""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
Row = dict[str, Any]
Interval = tuple[float, float, float]  # the value, its lower and its upper bound


def spread(values: Sequence[float]) -> Interval:
    """Median, and the 95 % bootstrap interval of the median."""
    return _with_bootstrap(lambda rng: statistics.median(rng.choices(values, k=len(values))), statistics.median(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Ratio of the medians of two interleaved series, and its 95 % bootstrap interval (turns are drawn as pairs)."""
    pairs = list(zip(ours, theirs, strict=True))

    def of(drawn: Sequence[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn)

    return _with_bootstrap(lambda rng: of(rng.choices(pairs, k=len(pairs))), of(pairs))


def _with_bootstrap(draw: Callable[[random.Random], float], value: float) -> Interval:
    rng = random.Random(0)
    drawn = sorted(draw(rng) for _ in range(2000))
    return value, drawn[49], drawn[1949]


def mean_and_range(values: Sequence[float]) -> Interval:
    """Mean, least and greatest of a few values, such as one per seed."""
    return statistics.fmean(values), min(values), max(values)


def percent(k: int, n: int) -> Interval:
    """k of n in per cent, and Wilson's 95 % interval."""
    from pellucid.core.measure.share import wilson

    low, high = wilson(k, n)
    return 100 * k / n, 100 * low, 100 * high


def record(name: str, claim: str, claimed: str, measured: Interval, *, n: int, unit: str, **facts: Any) -> None:
    """Write `results/<name>.json`: what is claimed, and what was `measured` from `n` samples.

    The file also states the hardware, the versions and the script; `facts` adds the seed and whatever else the number
    depends on.

    Args:
        name: folder and file name without suffix, such as `whiten/step-vgg11`
        claim: the quantity in words, the first column of a table
        claimed: the bound or value that is claimed for it, "" for none
        measured: the value and its interval
        n: number of samples behind the interval
        unit: unit of the value, "x" for a ratio
    """
    from pellucid.core.files.atomic import write_atomic
    from pellucid.core.train.environment import describe_environment

    value, low, high = measured
    environment = describe_environment()
    content = {
        "name": name,
        "claim": claim,
        "claimed": claimed,
        "measured": round(value, 4),
        "interval": [round(low, 4), round(high, 4)],
        "n": n,
        "unit": unit,
        "command": f"python {Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix()}",
        **facts,
        "hardware": {key: environment[key] for key in ("processor", "cores", "threads", "gpus")},
        "versions": {"python": environment["python"], **environment["packages"]},
        "date": environment["began"][:10],
    }
    write_atomic(RESULTS / f"{name}.json", json.dumps(content, indent=2) + "\n")
    print(f"{claim}: {value:.3f} {unit} ({low:.3f} to {high:.3f}, n = {n}), claimed {claimed}")


def logged(log: Path) -> list[Row]:
    """All rows of a log, one JSON object per line; none where there is no file yet."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def run_rows(log: Path, keys: Iterable[Row], run: Callable[..., Row]) -> list[Row]:
    """Run the rows that `log` lacks, append each as soon as it is finished, and return those of `keys` in their order.

    Args:
        log: the file; a row is one JSON line, its key first
        keys: what identifies each row, such as `{"variant": "bn", "seed": 0}`
        run: called with a key's items as keyword arguments, returns the rest of the row
    """
    rows, wanted = logged(log), []
    for key in keys:
        row = next((row for row in rows if key.items() <= row.items()), None)
        if row is None:
            line = json.dumps({**key, **run(**key)})
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a") as file:
                file.write(line + "\n")
            print(line, flush=True)
            row = json.loads(line)
            rows.append(row)
        wanted.append(row)
    return wanted


def log_and_record(
    name: str,
    titles: Mapping[str, str],
    seeds: Sequence[int],
    run: Callable[[str, int], Row],
    *,
    facts: Callable[[list[Row]], Row],
    claimed: Mapping[str, str] | None = None,
    **constant: Any,
) -> None:
    """Run every variant on every seed, and record each variant's accuracy over all seeds in the log.

    Rows go to `results/<name>.jsonl`; those already there are not run again. Results go to
    `results/<name>-<variant>.json`: the mean over the seeds, and the range.

    Args:
        titles: the claim of each variant
        run: `(variant, seed)` -> a row with `accuracy` (0 to 1) and `seconds`
        facts: the rows of a variant -> what its result adds
        claimed: what is claimed of a variant
        constant: what all results add
    """
    log = RESULTS / f"{name}.jsonl"
    run_rows(log, ({"variant": variant, "seed": seed} for seed in seeds for variant in titles), run)
    for variant, title in titles.items():
        rows = [row for row in logged(log) if row["variant"] == variant]
        if not rows:
            continue
        record(
            f"{name}-{variant}",
            title,
            (claimed or {}).get(variant, ""),
            mean_and_range([100 * row["accuracy"] for row in rows]),
            n=len(rows),
            unit="%",
            interval_is="least and greatest of the seeds",
            seconds=round(statistics.mean(row["seconds"] for row in rows), 1),
            **facts(rows),
            seed=", ".join(str(row["seed"]) for row in rows),
            **constant,
        )

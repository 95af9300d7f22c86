"""Results as data: one JSON a measured claim in `results/`, and the README's table made from them.

python benchmarks/results.py            rewrite the tables in README.md and docs/ from results/*.json
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# <!-- results: names of files | keys of columns (optional) --> ... <!-- end -->
TABLE = re.compile(
    r"(<!-- results: (?P<names>[\w ,-]+?)(?: \| (?P<columns>[\w ,=]+))? -->\n).*?(<!-- end -->)", re.DOTALL
)
TITLES = {"claim": "what", "measured": "measured (95 % interval)", "command": "made by"}


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the 95 % bootstrap interval of the median."""
    return _with_bootstrap(lambda rng: statistics.median(rng.choices(values, k=len(values))), statistics.median(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians of two interleaved series, and its 95 % bootstrap interval (turns are drawn as pairs)."""
    pairs = list(zip(ours, theirs, strict=True))

    def of(drawn: Sequence[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn)

    return _with_bootstrap(lambda rng: of(rng.choices(pairs, k=len(pairs))), of(pairs))


def _with_bootstrap(draw: Callable[[random.Random], float], value: float) -> tuple[float, float, float]:
    rng = random.Random(0)
    drawn = sorted(draw(rng) for _ in range(2000))
    return value, drawn[49], drawn[1949]


def record(
    name: str, claim: str, claimed: str, measured: tuple[float, float, float], *, n: int, unit: str, **facts: Any
) -> None:
    """Write `results/<name>.json`: what is claimed, and what was `measured` with its interval, in n turns.

    Hardware, versions and the command go along; `facts` adds the seed and what else the number depends on.
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
        "command": "python benchmarks/" + environment["command"][0],
        **facts,
        "hardware": {key: environment[key] for key in ("processor", "cores", "threads", "gpus")},
        "versions": {"python": environment["python"], **environment["packages"]},
        "date": environment["began"][:10],
    }
    write_atomic(ROOT / "results" / f"{name}.json", json.dumps(content, indent=2) + "\n")
    print(f"{claim}: {value:.3f} {unit} ({low:.3f} to {high:.3f}, n = {n}), claimed {claimed}")


def table(names: Sequence[str], columns: Sequence[str]) -> str:
    """A Markdown table of the named results, and what they were measured on."""
    results = [json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in names]
    titles = dict(TITLES)
    if intervals := {r["interval_is"] for r in results if "interval_is" in r}:
        titles["measured"] = f"measured ({intervals.pop()})"
    lines = ["| " + " | ".join(titles.get(key, key.replace("_", " ")) for key in columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    lines += ["| " + " | ".join(_cell(result, key) for key in columns) + " |" for result in results]
    hardware, versions = results[0]["hardware"], results[0]["versions"]
    lines.append("")
    lines.append(
        f"On {hardware['cores']} cores ({hardware['processor']}), {', '.join(hardware['gpus']) or 'no GPU'}; "
        f"{hardware['threads']} {'thread' if hardware['threads'] == 1 else 'threads'}; "
        f"Python {versions['python']}, torch {versions['torch']}; {results[0]['date']}."
    )
    return "\n".join(lines)


def _cell(result: dict[str, Any], key: str) -> str:
    if key == "measured":
        low, high = result["interval"]
        return f"{result['measured']:.3g} ({low:.3g} to {high:.3g}) {result['unit']}"
    return f"`{result[key]}`" if key == "command" else str(result[key])


def filled(text: str) -> str:
    """`text` with every table between its markers made anew."""

    def make(match: re.Match[str]) -> str:
        names, columns = (
            [word.strip() for word in (match[group] or "").split(",") if word.strip()] for group in ("names", "columns")
        )
        made = table(names, columns or ["claim", "claimed", "measured", "n", "command"])
        return f"{match[1]}{made}\n{match[4]}"

    return TABLE.sub(make, text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(filled(page.read_text()))

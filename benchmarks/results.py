"""Results as data: one JSON a measured claim in `results/`, and the README's table made from them.

python benchmarks/results.py            rewrite the tables in README.md and docs/ from results/*.json
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"(<!-- results: (?P<names>[\w ,-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)


def record(name: str, claim: str, claimed: str, values: Sequence[float], *, unit: str, **facts: Any) -> None:
    """Write `results/<name>.json`: what is claimed, and the median of `values` with its whole range.

    Hardware, versions and the command go along; `facts` adds the seed and what else the number depends on.
    """
    from pellucid.core.files import write_atomic
    from pellucid.core.run import describe_environment

    median, low, high = spread(values)
    environment = describe_environment()
    content = {
        "name": name,
        "claim": claim,
        "claimed": claimed,
        "measured": round(median, 4),
        "interval": [round(low, 4), round(high, 4)],
        "interval_is": "least and greatest of n",
        "n": len(values),
        "unit": unit,
        "command": "python benchmarks/" + environment["command"][0],
        **facts,
        "hardware": {key: environment[key] for key in ("processor", "cores", "threads", "gpus")},
        "versions": {"python": environment["python"], **environment["packages"]},
        "date": environment["began"][:10],
    }
    write_atomic(ROOT / "results" / f"{name}.json", json.dumps(content, indent=2) + "\n")
    print(f"{claim}: {median:.3f} {unit} ({low:.3f} to {high:.3f}, n = {len(values)}), claimed {claimed}")


def table(names: Sequence[str]) -> str:
    """A Markdown table of the named results."""
    lines = ["| measured | claimed | median (range) | n | made by |", "|---|---|---|---|---|"]
    for name in names:
        r = json.loads((ROOT / "results" / f"{name}.json").read_text())
        low, high = r["interval"]
        value = f"{r['measured']:.3g} ({low:.3g} to {high:.3g}) {r['unit']}"
        lines.append(f"| {r['claim']} | {r['claimed']} | {value} | {r['n']} | `{r['command']}` |")
    hardware = r["hardware"]
    versions = r["versions"]
    lines.append("")
    lines.append(
        f"On {hardware['cores']} cores ({hardware['processor']}), {', '.join(hardware['gpus']) or 'no GPU'}; "
        f"Python {versions['python']}, torch {versions['torch']}; {r['date']}."
    )
    return "\n".join(lines)


def filled(text: str) -> str:
    """`text` with every table between its markers made anew."""

    def make(match: re.Match[str]) -> str:
        names = [name.strip() for name in match["names"].split(",")]
        return f"{match[1]}{table(names)}\n{match[3]}"

    return TABLE.sub(make, text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(filled(page.read_text()))

"""Rewrite the tables in README.md and docs/ from the files in `results/`.

    python benchmarks/tables.py

A table stands between `<!-- results: NAME, ... | COLUMN, ... -->` and `<!-- end -->`. A name is that of a file in
`results/` without its suffix, such as `whiten/step-vgg11`; a column is a key of the files. The columns may be left out.
The sentences that operations on networks were refused with stand between `<!-- refusals: LOG -->` and `<!-- end -->`;
LOG is the log of a walk, such as `core/walk`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(
    r"(<!-- results: (?P<names>[\w ,/-]+?)(?: \| (?P<columns>[\w ,=]+))? -->\n).*?(<!-- end -->)", re.DOTALL
)
REFUSALS = re.compile(r"(<!-- refusals: (?P<log>[\w/-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
QUOTED = re.compile(r"'[^']*'")
SHOWN = 6  # networks that a row names
COLUMNS = ("claim", "claimed", "measured", "n", "command")
TITLES = {"claim": "what", "measured": "measured (95 % interval)", "command": "made by"}


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


def refusals(log: str) -> str:
    """A Markdown table of the sentences that operations on networks were refused with; names of layers are left out."""
    file = ROOT / "results" / f"{log}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["result"] == "refused":
            key = (QUOTED.sub("'...'", row["sentence"]).replace("|", "\\|"), row["operation"])
            found.setdefault(key, {})[row["network"]] = None
    lines = ["| sentence | operation | networks | such as |", "|---|---|---|---|"]
    for (sentence, operation), networks in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {sentence} | {operation} | {len(networks)} | {', '.join(list(networks)[:SHOWN])} |")
    return "\n".join(lines) if rows else "No walk has been recorded."


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
        return f"{match[1]}{table(names, columns or COLUMNS)}\n{match[4]}"

    made = TABLE.sub(make, text)
    return REFUSALS.sub(lambda match: f"{match[1]}{refusals(match['log'])}\n{match[3]}", made)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(filled(page.read_text()))

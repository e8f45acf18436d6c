"""`python -m benchmarks [--quick] [--only WORD] [--json FILE] [--write FILE]`: measures, and prints tables."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import disk, eviction, growth, hits, misses, redis_hits
from benchmarks.measure import Table, Work
from benchmarks.peers import LEFT_OUT
from benchmarks.reasons import reason_for


def works(quick: bool) -> Iterator[Work]:
    yield from hits.in_process()
    yield from hits.messages()
    yield from hits.results()
    yield from disk.hits()
    yield from disk.writes()
    yield from redis_hits.hits()
    yield from misses.overhead()
    yield from misses.stampede()
    yield redis_hits.weights
    yield disk.sizes
    yield from eviction.rates(4_000 if quick else 200_000)
    yield growth.entry_bytes
    yield from growth.growth(20_000 if quick else 1_000_000)
    yield growth.imports


def measured(only: str, *, quick: bool) -> Iterator[Table]:
    rounds, seconds = (3, 0.002) if quick else (11, 0.05)
    for work in works(quick):
        title = getattr(work, "title", only)  # of what is not timed, the title comes with the figures
        if only in title:
            table = work() if callable(work) else work.measure(rounds, seconds)
            if only in table.title:
                yield table


def machine() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {os.cpu_count()} cores, {platform.system()} on {platform.machine()}"


def text_of(table: Table) -> str:
    """A table for a terminal."""
    floor = next(iter(table.values.values()))
    ours = table.values["aimemo"]
    goals = {name: f"goal {goal:.3g}: {'met' if met else 'MISSED'}" for name, goal, _, met in table.verdicts()}
    lines = [f"\n{table.title}", f"{'':<34}{table.unit:>14}{'spread':>8}{'x first':>9}{'aimemo is':>11}"]
    for name, value in table.values.items():
        spread = f"{table.spreads[name]:.1%}" if name in table.spreads else ""
        goal = goals.get(name, goals.get("", "") if name == "aimemo" else "")
        lines.append(
            f"{name:<34}{value:>14,.4g}{spread:>8}{_times(value, floor):>9}{_times(ours, value):>10}x  {goal}".rstrip()
        )
    return "\n".join(lines)


def _times(value: float, other: float) -> str:
    return f"{value / other:.2f}" if other else "-"


def document(tables: list[Table]) -> str:
    """All tables in Markdown, with the goals first."""
    goals = [(table.title, *verdict) for table in tables for verdict in table.verdicts()]
    met = sum(is_met for *_, is_met in goals)
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {datetime.date.today()}: {machine()}.",
        "Ratios of medians of interleaved rounds; where a neighbour is better, the table says so.",
        "The spread (half of the rounds lie within it) says how noisy the machine was.",
        "",
        f"## Goals: {met} of {len(goals)} met",
        "",
        "| at | against | wanted | is | |",
        "|---|---|---|---|---|",
    ]
    for title, against, wanted, ratio, is_met in goals:
        verdict = "met" if is_met else "**missed**"
        lines.append(f"| {title} | {against or 'no other'} | {wanted:.3g} | {ratio:.3g} | {verdict} |")
    lines += ["", "## Why the missed ones are", ""]
    for title, against, *_, is_met in goals:
        if not is_met:
            lines.append(
                f"- **{title}**, against {against}: {reason_for(title, against) or 'noise, or not known yet.'}"
            )
    lines += ["", "## Figures", ""]
    for table in tables:
        lines += [f"### {table.title}", "", f"| | {table.unit} | spread | aimemo is |", "|---|---|---|---|"]
        for name, value in table.values.items():
            spread = f"{table.spreads[name]:.0%}" if name in table.spreads else ""
            lines.append(f"| {name} | {value:,.4g} | {spread} | {_times(table.values['aimemo'], value)} x |")
        lines.append("")
    if LEFT_OUT:
        lines += [f"Left out: {', '.join(sorted(LEFT_OUT))} (not installed, or not able to).", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", default="", help="only what has this word in its title")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--write", type=Path, help="write the document to this file too")
    args = parser.parse_args()
    print(machine())
    tables = []
    for table in measured(args.only, quick=args.quick):
        tables.append(table)
        print(text_of(table), flush=True)
    for name, reason in LEFT_OUT.items():
        print(f"left out: {name} ({reason})")
    if args.json:
        figures = [dataclasses.asdict(table) for table in tables]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        said = {"date": str(datetime.date.today()), "machine": machine(), "tables": figures}
        args.json.write_text(json.dumps(said, indent=2) + "\n")
    if args.write:
        args.write.write_text(document(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())

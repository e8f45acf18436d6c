"""`python -m benchmarks [--quick] [--only WORD] [--json FILE]`: prints a table for each section."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import eviction, hits, redis_hits
from benchmarks.measure import Result, Section, run


def sections() -> Iterator[Section]:
    yield from hits.in_process()
    yield from hits.messages()
    yield from hits.sqlite()
    yield from redis_hits.hits()


def machine() -> str:
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}"
    )


def table(section: Section, results: list[Result]) -> str:
    floor = results[0].ns
    ours = next(result.ns for result in results if result.name == "aimemo")
    lines = [f"\n{section.title}", f"{'':<28}{'ns/call':>10}{'spread':>8}{'x floor':>9}{'aimemo is':>11}"]
    for result in results:
        goal = section.goals.get(result.name)
        ratio = ours / result.ns
        verdict = "" if goal is None else f"  goal <= {goal:g}: {'met' if ratio <= goal else 'MISSED'}"
        figures = f"{result.ns:>10,.0f}{result.spread:>8.1%}{result.ns / floor:>9.2f}{ratio:>10.2f}x"
        lines.append(f"{result.name:<28}{figures}{verdict}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", default="", help="only sections whose title holds this word")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    rounds, seconds = (5, 0.02) if args.quick else (15, 0.1)
    print(machine())
    figures: list[dict[str, Any]] = []
    for section in sections():
        if args.only in section.title:
            results = run(section, rounds=rounds, seconds=seconds)
            print(table(section, results), flush=True)
            figures.append({"title": section.title, "ns": {result.name: result.ns for result in results}})
    if args.only in eviction.TITLE:
        print(eviction.table(requests=20_000 if args.quick else 200_000))
    if args.only in redis_hits.TITLE:
        print(redis_hits.weights())
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "sections": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

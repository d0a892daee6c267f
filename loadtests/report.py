"""A report of one load test, or of two side by side: ``report.json``, and ``report.html``, which needs no other file.

    report.py RUN [RUN2] --out DIR

A run is a folder that ``replay.py`` wrote, or its file of outcomes. What a meter read of the whole run comes from
``meter.json`` in the run's folder, or by ``--energy-j`` and ``--cost-usd``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec
from load import results
from load.comparison import Comparison, compare, draws_of
from load.report_html import METHOD, page
from load.run import Meter, Run, Spent
from load.statistics import draws
from load.summary import Summary, summarise

HTML, JSON, METER = "report.html", "report.json", "meter.json"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``report.json`` holds."""

    method: tuple[str, ...]
    seed: int
    runs: tuple[Summary, ...]
    comparison: Comparison | None


def make(runs: Sequence[Run], seed: int = 0) -> Report:
    """The report of one run or two."""
    if len(runs) == 1:
        summaries = (summarise(runs[0], draws(runs[0].block_of, seed)),)
        return Report(method=METHOD, seed=seed, runs=summaries, comparison=None)
    first, second = runs
    counts = draws_of(first, second, seed)
    return Report(
        method=METHOD,
        seed=seed,
        runs=tuple(summarise(run, drawn) for run, drawn in zip(runs, counts, strict=True)),
        comparison=compare(first, second, seed),
    )


def write(report: Report, folder: Path) -> None:
    """Write both files; raises FileExistsError, and writes nothing, where one of them is there already."""
    for path in (folder / HTML, folder / JSON):
        if path.exists():
            raise FileExistsError(f"{path} is there already: name another folder, reports are never overwritten")
    html = page(report.runs, report.comparison)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    (folder / HTML).write_text(html, encoding="utf-8")


def read(path: Path, name: str, *, energy_j: float | None = None, cost_usd: float | None = None) -> Run:
    """A run with its meter. Raises ValueError where a file holds something else, or a total is given twice."""
    found = results.read(path)
    return Run(
        name,
        found.outcomes,
        meter=_meter(path, energy_j, cost_usd),
        about=msgspec.to_builtins(found.header),
        planned=found.header.requests,
        plan_sha256=found.header.plan_sha256,
    )


def _meter(path: Path, energy_j: float | None, cost_usd: float | None) -> Meter:
    file = (path if path.is_dir() else path.parent) / METER
    told = energy_j is not None or cost_usd is not None
    if not file.exists():
        if not told:
            return Meter()
        allocation = Spent(energy_j=energy_j, cost_usd=cost_usd)
        return Meter(source="given by whoever made the report", allocation=allocation)
    if told:
        raise ValueError(f"{file} is there, and so is --energy-j or --cost-usd: must be one of them")
    try:
        return msgspec.json.decode(file.read_bytes(), type=Meter)
    except msgspec.DecodeError as error:
        raise ValueError(f"{file} is not what a meter read: {error}") from None


def names(paths: Sequence[Path]) -> list[str]:
    """What tells runs apart: the names of their folders or files, or as much of their paths as it takes."""
    whole = [path.resolve() for path in paths]
    parts = [(path.parent if path.name in (results.JSONL, results.PARQUET) else path).parts for path in whole]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{part[-1]} ({place})" for place, part in enumerate(parts, start=1)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="one run, or two to compare: second over first"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    total = "of each run in all, what idled included (basis allocation)"
    parser.add_argument("--energy-j", type=float, nargs="+", metavar="J", help=f"joules {total}")
    parser.add_argument("--cost-usd", type=float, nargs="+", metavar="USD", help=f"dollars {total}")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals' draws (0)")
    args = parser.parse_args(arguments)
    count = len(args.runs)
    if count > 2:
        parser.error(f"{count} runs are given: must be 1 or 2")
    for option, values in (("--energy-j", args.energy_j), ("--cost-usd", args.cost_usd)):
        if values is not None and len(values) != count:
            parser.error(f"{option} has {len(values)} values: must be one for each of the {count} runs")
    try:
        runs = [
            read(path, name, energy_j=energy_j, cost_usd=cost_usd)
            for path, name, energy_j, cost_usd in zip(
                args.runs,
                names(args.runs),
                args.energy_j or [None] * count,
                args.cost_usd or [None] * count,
                strict=True,
            )
        ]
        write(make(runs, args.seed), args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"report.py: {error}") from None
    print(args.out / HTML)
    print(args.out / JSON)


if __name__ == "__main__":
    main()

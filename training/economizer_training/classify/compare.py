"""``economizer-train classify``: every run in turn, each with what it cost from its process's first moment on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from economizer.energy.choose import meter_for
from economizer.energy.cpu_time import CpuTime
from economizer_compression.family import located
from economizer_compression.manifests import digest_file, digest_folder, digest_of
from economizer_compression.provenance import hardware

from economizer_training.classify import text
from economizer_training.classify.report import Outcome, Report, markdown
from economizer_training.classify.run import STAGES, Making, make_in_process
from economizer_training.classify.settings import Classification, Run, encoder_folder
from economizer_training.data.laps import watched
from economizer_training.errors import TrainingError
from economizer_training.metered import Metered
from economizer_training.record import Cost

OUTCOMES = "runs.jsonl"

Say = Callable[[str], None]


def classify(job: Classification, *, data: Path | None, say: Say) -> Report:
    """Makes and measures all runs; ``report.json`` and ``report.md`` in ``job.out`` have what is made so far.

    What ``job.out`` has of the same settings and files is not made again, so that the same command goes on after a
    stop. Raises TrainingError before any work where it can.
    """
    runs, encoder = job.runs(), encoder_folder(job.encoder)
    _refuse_missing_blocks(encoder, runs)
    train, test = text.placed(job.train, data, "train"), text.placed(job.test, data, "test")
    text.read_pair(train, test)
    inputs = f"{_digest(encoder, train, test)} {job.tokens_max} {job.meter}"
    out = located(job.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, seed in _order(job, runs):
        if _found(out, inputs, runs[name], seed, name) is None:
            say(f"{name}, seed {seed}")
            with tempfile.TemporaryDirectory(prefix="classify-") as folder:
                making = Making(
                    run=runs[name],
                    seed=seed,
                    encoder=encoder,
                    train=train,
                    test=test,
                    tokens_max=job.tokens_max,
                    folder=Path(folder),
                )
                outcome = _measured(making, job, name)
            line = {"inputs": inputs, "run": asdict(runs[name]), **asdict(outcome)}
            with (out / OUTCOMES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            say(f"{name}, seed {seed}: {outcome.told()}")
        report = _reported(job, runs, inputs, out)
    return report


def _reported(job: Classification, runs: Mapping[str, Run], inputs: str, out: Path) -> Report:
    """The report of what is made so far, written where there are both ends to compare."""
    found = [_found(out, inputs, runs[name], seed, name) for name, seed in _order(job, runs)]
    outcomes = tuple(outcome for outcome in found if outcome is not None)
    report = Report(names=tuple(runs), outcomes=outcomes, hardware=hardware())
    if len(outcomes) > 1:
        (out / "report.json").write_text(json.dumps(report.figures(), indent=2) + "\n", encoding="utf-8")
        (out / "report.md").write_text(markdown(report), encoding="utf-8")
    return report


def _refuse_missing_blocks(encoder: Path, runs: Mapping[str, Run]) -> None:
    count = json.loads((encoder / "config.json").read_text(encoding="utf-8")).get("num_hidden_layers", inf)
    for name, run in runs.items():
        if run.blocks is not None and run.blocks[-1] >= count:
            raise TrainingError(f"{name}: blocks: {list(run.blocks)}: {encoder} has {count}, counted from 0")


def _order(job: Classification, runs: Mapping[str, Run]) -> Iterator[tuple[str, int]]:
    """What is made, what matters most first: the two ends, the measures between from the last on, the other seeds."""
    plain, *between, ours = runs
    first, *others = job.seeds
    yield from ((name, first) for name in (plain, ours, *reversed(between)))
    yield from ((name, seed) for seed in others for name in (plain, ours))


def _measured(making: Making, job: Classification, name: str) -> Outcome:
    """Runs it in a process of its own, of which all that runs below it is metered from its first moment on."""
    cpu_time = CpuTime()
    meter = meter_for(job.meter, gpus=(), cores=len(os.sched_getaffinity(0)), idle_w=None, cpu_time=cpu_time)
    described = meter.describe()
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=make_in_process, args=(making, there))
    costs: dict[str, Cost] = {}
    figures: dict[str, Any] = {}
    with watched(meter) as lock:
        with lock:
            metered = Metered(meter, cpu_time.seconds)
        process.start()
        there.close()
        try:
            for stage in STAGES:
                figures |= _told(here, stage, name)
                with lock:
                    costs[stage] = metered.lap()
        except KeyboardInterrupt:
            process.terminate()
            raise
        finally:
            process.join()
    return Outcome(name=name, seed=making.seed, costs=costs, method=metered.method, meter=described, **figures)


def _told(connection: Connection, stage: str, name: str) -> dict[str, Any]:
    try:
        what, told = connection.recv()
    except EOFError:
        raise TrainingError(f"{name}: its process ended before it had done: {stage}") from None
    if what != stage:
        raise TrainingError(f"{name}: {told}")
    figures: dict[str, Any] = told
    return figures


def _digest(encoder: Path, train: Path, test: Path) -> str:
    files = {"train": digest_file(train), "test": digest_file(test)}
    files |= {f"encoder/{name}": digest for name, digest in digest_folder(encoder).items()}
    return digest_of(files)


def _found(out: Path, inputs: str, run: Run, seed: int, name: str) -> Outcome | None:
    """What an earlier call made of the same."""
    path = out / OUTCOMES
    if not path.is_file():
        return None
    same = {"inputs": inputs, "run": json.loads(json.dumps(asdict(run))), "seed": seed}
    for written in path.read_text(encoding="utf-8").split("\n")[:-1]:
        line = json.loads(written)
        if all(line[key] == value for key, value in same.items()):
            return Outcome.read(line, name)
    return None

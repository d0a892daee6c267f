"""``economizer-compress build``: every variant of a family file, from the full model to the gateway's catalogue.

Making and scoring run in processes of their own, one for each core, since they need no quiet; what is measured on an
engine runs alone. What is there already, whole, is not done again, so a build that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from economizer.variants.manifest import Making, Manifest

from economizer_compression.errors import CompressionError
from economizer_compression.family import FamilyFile, load_engine, located
from economizer_compression.gate import judge
from economizer_compression.importing import import_checkpoint
from economizer_compression.listing import listing, table
from economizer_compression.make import HELD_BACK
from economizer_compression.manifests import digest_of, read_manifest, write_manifest
from economizer_compression.measure import is_current, measure_quality, measure_speed
from economizer_compression.model_folder import ModelFolder, available_memory_bytes
from economizer_compression.promotion import publish, whole_manifest
from economizer_compression.recipes import Recipe, load_recipe
from economizer_compression.reference import suite_digest
from economizer_compression.store import Store
from economizer_compression.suite import load_suite
from economizer_compression.tether import tethered

_WORKER_BYTES = 3 << 30  # libraries and working space of one process, beside two copies of the weights
_GRACE_S = 3.0
_COMMAND = (sys.executable, "-m", "economizer_compression.cli")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to build, from what text, and where to."""

    family: FamilyFile
    only: frozenset[str]
    out: Path
    suite: str
    data: Path | None
    store: Store
    catalogue: Path | None

    def folder(self, variant: str) -> Path:
        """Where a variant is made."""
        return self.out / variant

    @property
    def full(self) -> Path:
        """The full model's own folder, with a manifest like the others."""
        return self.folder(self.family.full)

    @property
    def variants(self) -> list[str]:
        """The variants to build, in the file's order."""
        return [variant for variant in self.family.variants if variant in self.only]


def build_family(build: Build, say: Say) -> None:
    """Makes, scores, measures, judges and publishes; prints the family's table.

    A variant that fails does not keep the others from being published; then CompressionError names all that failed.
    """
    began_s = time.monotonic()
    failed: dict[str, str] = {}
    _take_over_full_model(build, say)
    _made_and_scored(build, failed, say)
    _measured(build, failed, say)
    whole = [variant for variant in build.variants if variant not in failed]
    _judged(build, whole, say)
    for line in publish([build.full, *map(build.folder, whole)], build.store, build.catalogue):
        say(line)
    say(f"{build.family.family}: built in {(time.monotonic() - began_s) / 60:.1f} min")
    print(table(listing(build.store)), flush=True)
    if failed:
        lines = "\n".join(f"  {variant}: {why}" for variant, why in failed.items())
        raise CompressionError(f"{len(failed)} of {len(build.variants)} variants failed\n{lines}")


def _take_over_full_model(build: Build, say: Say) -> None:
    if not build.full.exists():
        build.out.mkdir(parents=True, exist_ok=True)
        import_checkpoint(
            located(build.family.model),
            build.full,
            family=build.family.family,
            variant=build.family.full,
            full=True,
            say=say,
        )
    whole_manifest(build.full)
    if not _is_scored(build.full, suite_digest(load_suite(build.suite), build.data)):
        say(f"scoring {build.family.full}, which the others are compared with")
        measure_quality(build.full, build.full, suite=build.suite, data=build.data, say=say)


def _made_and_scored(build: Build, failed: dict[str, str], say: Say) -> None:
    """Each variant by a worker of its own, so that one that fails or is killed takes nothing with it."""
    suite_sha256 = suite_digest(load_suite(build.suite), build.data)
    for variant in build.variants:
        _refuse_another(build, variant)
    unfinished = [variant for variant in build.variants if not _is_scored(build.folder(variant), suite_sha256)]
    if not unfinished:
        return
    room = available_memory_bytes() // (_WORKER_BYTES + 2 * ModelFolder.open(build.full).weights_bytes)
    started_s = time.monotonic()
    workers = _Workers()
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, room))) as pool:
        jobs = {pool.submit(_make_and_score, build, variant, workers): variant for variant in unfinished}
        try:
            for count, job in enumerate(as_completed(jobs), start=1):
                variant = jobs[job]
                if (error := job.exception()) is not None:
                    failed[variant] = str(error)
                took_s = time.monotonic() - started_s
                left_s = took_s / count * (len(jobs) - count)
                state = f"failed: {failed[variant]}" if variant in failed else "made and scored"
                say(f"{variant}: {state} ({count} of {len(jobs)}, about {left_s / 60:.0f} min left)")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.end()
            raise


def _refuse_another(build: Build, variant: str) -> None:
    """Raises CompressionError for a folder of that name that was made from another model or by another recipe.

    Also for one that is not there and that no recipe makes.
    """
    folder, recipe, source = build.folder(variant), build.family.recipe(variant), build.family.source(variant)
    if not folder.exists():
        if recipe is None:
            raise CompressionError(f"there is no {folder}, which no recipe makes: distil it, or import it there")
        return
    manifest = read_manifest(folder)
    is_same = manifest.origin.sha256 == digest_of(read_manifest(build.folder(source)).files)
    if not is_same or not (recipe is None or _is_made_by(manifest.making, load_recipe(recipe), build.suite)):
        raise CompressionError(
            f"{folder} was made from another model than {source}, by another recipe than {recipe or 'none'} is now, "
            f"or with other text than suite {build.suite} has: remove it, or build to another folder with --out"
        )


def _is_made_by(making: Making | None, recipe: Recipe, suite: str) -> bool:
    """Whether the recorded steps are one of the recipe's candidates, with its text."""
    if making is None:
        return False
    recorded = json.dumps([[step.name, dict(step.parameters)] for step in making.steps])
    candidates = (json.dumps([[step.name, asdict(step)] for step in steps]) for _, steps in recipe.candidates())
    wanted, text = recipe.calibration, making.calibration
    same_text = not recipe.needs_text or (
        text is not None
        and (text.seed, text.tokens) == (wanted.seed, text.samples * wanted.tokens)
        and 0 <= text.samples - wanted.samples <= HELD_BACK
        and text.source.startswith(f"{load_suite(suite).name}: ")
    )
    return making.recipe == recipe.name and recorded in candidates and same_text


def _is_scored(folder: Path, suite_sha256: str) -> bool:
    """Whether the variant is there with its score on this very suite."""
    if not folder.exists():
        return False
    evaluation = read_manifest(folder).evaluation
    return evaluation is not None and evaluation.suite_sha256 == suite_sha256


def _make_and_score(build: Build, variant: str, workers: _Workers) -> None:
    folder = build.folder(variant)
    text = ["--suite", build.suite, *(["--data", str(build.data)] if build.data is not None else [])]
    if not folder.exists():
        recipe, source = build.family.recipe(variant), build.folder(build.family.source(variant))
        assert recipe is not None  # else `_refuse_another` had refused it
        made = ["run", recipe, "--model", str(source), "--out", str(folder)]
        workers.run([*made, "--family", build.family.family, "--variant", variant, *text], folder)
    workers.run(["evaluate", str(folder), "--reference", str(build.full), "--quality-only", *text], folder)


class _Workers:
    """Commands that run beside this process and end with it, however it ends."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, arguments: Sequence[str], folder: Path) -> None:
        """One command with its output in a log beside the folder; raises CompressionError with its last line."""
        log = folder.with_name(f"{folder.name}.log")
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(
                tethered([*_COMMAND, *arguments], grace_s=_GRACE_S),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._running.add(process)
            try:
                code = process.wait()
            finally:
                self._running.discard(process)
        if code != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1].removeprefix("economizer-compress: ") if lines else "it wrote nothing"
            raise CompressionError(f"{last} (exit code {code}; its output is in {log})")

    def end(self) -> None:
        """Lets go of the tethers, which end what hangs on them."""
        for process in tuple(self._running):
            if process.stdin is not None:
                process.stdin.close()


def _measured(build: Build, failed: dict[str, str], say: Say) -> None:
    folders = [build.folder(variant) for variant in build.variants if variant not in failed]
    file = load_engine(build.family.engine)
    unmeasured = [folder for folder in folders if not is_current(read_manifest(folder).engine, file)]
    if unmeasured:
        say(f"measuring {len(unmeasured)} variants on engines, one after the other")
        failures = measure_speed(unmeasured, build.full, engine=build.family.engine, say=say)
        failed.update({folder.name: why for folder, why in failures.items()})


def _judged(build: Build, variants: Sequence[str], say: Say) -> None:
    """The best first, so that each is held against all better ones, whatever the order of the file."""
    promoted = [read_manifest(build.full)]
    manifests = [read_manifest(build.folder(variant)) for variant in variants]
    for manifest in sorted(manifests, key=_worst_last):
        verdict = judge(manifest, promoted, build.family.margins)
        judged = replace(manifest, verdict=verdict)
        write_manifest(build.folder(manifest.variant), judged)
        if verdict.promoted:
            promoted.append(judged)
        state = "promoted" if verdict.promoted else "not promoted"
        say(f"{manifest.variant}: {state}: {'; '.join(verdict.reasons)}")


def _worst_last(manifest: Manifest) -> tuple[float, str]:
    assert manifest.evaluation is not None
    return -manifest.evaluation.quality.value, manifest.variant

"""A run ends early where its joules gain too little, and waits while the grid is dirty; all workers do it together."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tiny
from economizer.energy.meter import ReplayMeter
from economizer_compression.manifests import read_manifest
from economizer_training import checkpoints
from economizer_training.distillation import Checkpoints, Mesh
from economizer_training.handover import hand_over
from economizer_training.pacing import EarlyStopping, Pause, gains
from economizer_training.record import lines, scores
from economizer_training.shards import Shards
from economizer_training.work import Work

STEPS, EVERY = 60, 3
TWO = Mesh(data=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    tiny.make_model(folder / "teacher", blocks=3)
    tiny.make_model(folder / "student", blocks=2, seed=1)
    tiny.make_data(folder / "data", folder / "teacher")
    (folder / "grid.csv").write_text("hour,g_per_kwh\n11,250\n12,412\n13,300\n")
    return folder


def work_of(folder: Path, name: str, mesh: Mesh = TWO, **changed: Any) -> Work:
    given = {"steps": STEPS, "checkpoints": Checkpoints(every_steps=EVERY, keep_last=2), "learning_rate": 0.003}
    job = tiny.settings(folder, out=str(folder / name), mesh=mesh, **{**given, **changed})
    return tiny.work_of(job, folder, folder / "student")


def joule_a_lap() -> ReplayMeter:
    """A joule and a second for each reading of each worker, a quarter of them idle."""
    return ReplayMeter([(float(at), at * 1_000_000) for at in range(4000)], idle_w=0.25)


def run(work: Work, **given: Any) -> list[str]:
    said = tiny.run(work, work.job.mesh, **{"meter": joule_a_lap, **given})
    assert "Traceback" not in "".join(said), "\n".join(said)
    return said


def of_kind(work: Work, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines(work.run) if line["kind"] == kind]


def losses(work: Work) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in of_kind(work, "step")}


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Work:
    work = work_of(folder, "undisturbed")
    run(work)
    return work


@pytest.fixture(scope="module")
def stopping(undisturbed: Work) -> EarlyStopping:
    """A bound under which the undisturbed run's gains fall for the first time after some scores."""
    gained = [gain for gain in gains(lines(undisturbed.run)) if gain is not None]
    assert len(gained) == STEPS // EVERY
    below, above = sorted(gained)[len(gained) // 2 - 1 : len(gained) // 2 + 1]
    return EarlyStopping(kl_per_kj_min=(below + above) / 2, patience=2)


def expected(undisturbed: Work, stopping: EarlyStopping) -> tuple[int, list[float]]:
    """The step after which it should end, and the gains that end it."""
    gained = gains(lines(undisturbed.run))
    for count in range(1, len(gained)):
        if found := stopping.too_little(gained[:count]):
            return count * EVERY, list(found)
    raise AssertionError("it would not stop")


@pytest.mark.parametrize("mesh", [Mesh(), TWO, Mesh(shard=2), Mesh(tensor=2), Mesh(pipeline=2)], ids=str)
def test_all_workers_end_after_the_same_score_and_the_best_checkpoint_is_handed_over(
    folder: Path, undisturbed: Work, stopping: EarlyStopping, mesh: Mesh
) -> None:
    work = work_of(folder, f"early {mesh}", mesh, early_stopping=stopping)
    # As many joules a lap for one worker as for two together.
    said = run(work, meter=joule_a_lap if mesh.workers == 2 else two_joules_a_lap)
    step, gained = expected(undisturbed, stopping)
    assert 0 < step < STEPS
    assert max(losses(work)) == step
    (told,) = of_kind(work, "stopped_early")
    assert told["step"] == step
    assert told["kl_per_kj"] == pytest.approx(gained, rel=0.02)
    assert any(line.startswith(f"stopped early after step {step} of {STEPS}: the last scores gained ") for line in said)
    out = folder / f"handed over {mesh}"
    hand_over(work, Shards.open(folder / "data"), out)
    making = read_manifest(out).making
    assert making is not None
    parameters = making.steps[-1].parameters
    assert parameters["stopped_early"] == {"step": step, "kl_per_kj": told["kl_per_kj"]}
    assert parameters["early_stopping"] == {"kl_per_kj_min": stopping.kl_per_kj_min, "patience": 2}
    assert parameters["step"] == min(scores(work.run)[1:], key=lambda score: score["kl"])["step"]


def two_joules_a_lap() -> ReplayMeter:
    return ReplayMeter([(float(at), at * 2_000_000) for at in range(4000)])


def test_a_run_that_is_not_stopped_early_says_so_in_its_manifest(folder: Path, undisturbed: Work) -> None:
    hand_over(undisturbed, Shards.open(folder / "data"), folder / "whole")
    making = read_manifest(folder / "whole").making
    assert making is not None
    assert making.steps[-1].parameters["stopped_early"] is None


def test_a_run_that_was_killed_ends_after_the_score_of_one_that_was_not(
    folder: Path, undisturbed: Work, stopping: EarlyStopping
) -> None:
    step, gained = expected(undisturbed, stopping)
    work = work_of(folder, "early killed", early_stopping=stopping)
    tiny.run_and_kill(work, TWO, lambda: max(losses(work), default=0) > EVERY + 1, meter=joule_a_lap)
    assert max(losses(work)) < step
    run(work)
    (told,) = of_kind(work, "stopped_early")
    assert told["step"] == step
    assert told["kl_per_kj"] == pytest.approx(gained, rel=0.02)


def test_a_run_that_has_ended_early_does_not_go_on(folder: Path, undisturbed: Work, stopping: EarlyStopping) -> None:
    step, _ = expected(undisturbed, stopping)
    work = work_of(folder, "ended", early_stopping=stopping)
    run(work)
    said = run(work)
    assert said[0] == f"going on after step {step} of {STEPS}"
    assert said[1].startswith(f"stopped early after step {step} of {STEPS}")
    assert max(losses(work)) == step
    assert lines(work.run)[-1]["kind"] == "stopped_early"


def test_where_joules_are_not_known_ending_by_them_is_refused_before_anything_is_learnt(folder: Path) -> None:
    work = work_of(folder, "no joules", early_stopping=EarlyStopping(kl_per_kj_min=1.0))
    told = [said.strip().splitlines()[-1] for said in tiny.run(work, TWO) if "Traceback" in said]
    why = "early_stopping: joules are not known here: set meter, or leave early_stopping out"
    assert told == 2 * [f"economizer_training.work.EnergyUnknown: {why}"]
    assert lines(work.run) == []


def test_a_run_whose_joules_become_unknown_goes_on_to_its_last_step(folder: Path) -> None:
    def failing() -> ReplayMeter:
        return ReplayMeter([(float(at), None if at == 5 else at * 1_000_000) for at in range(4000)])

    work = work_of(folder, "joules lost", steps=9, early_stopping=EarlyStopping(kl_per_kj_min=1e9, patience=1))
    run(work, meter=failing)
    assert max(losses(work)) == 9
    assert scores(work.run)[-1]["energy_j"] is None


class Ticking:
    """At 11:58:30, 20 seconds pass whenever it is looked at; sleeping takes no time of the test's."""

    def __init__(self) -> None:
        self._now_s = datetime(2026, 3, 1, 11, 58, 10, tzinfo=UTC).timestamp()

    def now_s(self) -> float:
        self._now_s += 20
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


def paused(folder: Path) -> Pause:
    return Pause(carbon_g_per_kwh_max=300, carbon_table=str(folder / "grid.csv"))


@pytest.mark.parametrize("mesh", [TWO, Mesh(pipeline=2)], ids=str)
def test_all_workers_wait_for_a_cleaner_hour_and_what_that_takes_is_shown_apart(
    folder: Path, undisturbed: Work, mesh: Mesh
) -> None:
    work = work_of(folder, f"paused {mesh}", mesh, pause=paused(folder), checkpoints=Checkpoints(keep_last=9))
    said = run(work, clock=Ticking)
    assert losses(work) == pytest.approx(losses(undisturbed), rel=1e-3)
    begun, *waiting = of_kind(work, "paused")
    (ended,) = of_kind(work, "resumed")
    assert (begun["g_per_kwh"], ended["g_per_kwh"]) == (412, 300)
    step = begun["step"]
    assert 0 < step < 10
    assert f"paused after step {step}: the grid is at 412 g/kWh, above 300" in said
    laps = len(waiting) + 1  # each of 80 seconds by the clock, and of one second and a joule by each worker's meter
    assert 40 <= laps <= 50
    assert f"going on after step {step}: pauses took {laps / 60:.1f} min and {2 * laps} J so far" in said
    last = scores(work.run)[-1]
    assert (last["paused_s"], last["paused_j"]) == (laps, 2 * laps)
    assert last["energy_j"] - last["paused_j"] == 2 * (1 + 2 + STEPS + 1)  # the beginning, scores, steps, to the pause
    hand_over(work, Shards.open(folder / "data"), folder / f"paused {mesh}" / "out")
    making = read_manifest(folder / f"paused {mesh}" / "out").making
    assert making is not None
    parameters = making.steps[-1].parameters
    assert (parameters["paused_seconds"], parameters["paused_energy_j"]) == (laps, 2 * laps)
    kept = work.checkpoints / f"step-{step:08d}"
    assert f'"step": {step}, "heldout_kl": null' in (kept / "state.json").read_text()
    found = checkpoints.best(work.checkpoints)
    assert found is not None
    assert found[1].heldout_kl is not None


class Standing:
    """Noon for ever: who sleeps wakes up soon, and it is still noon."""

    def now_s(self) -> float:
        return datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()

    def sleep(self, seconds: float) -> None:
        time.sleep(0.02)


def test_a_run_that_is_killed_in_a_pause_loses_nothing(folder: Path, undisturbed: Work) -> None:
    class Turning(Standing):
        """Noon from the eighth look on."""

        looks = 0

        def now_s(self) -> float:
            self.looks += 1
            return super().now_s() - (3600 if self.looks < 8 else 0) + 60 * min(self.looks, 50)

    work = work_of(folder, "killed in a pause", pause=paused(folder), checkpoints=Checkpoints(every_steps=100))
    tiny.run_and_kill(work, TWO, lambda: len(of_kind(work, "paused")) > 5, meter=joule_a_lap, clock=Turning)
    done = max(losses(work))
    before = lines(work.run)[-1]
    assert done > 0
    assert before["paused_j"] >= 8
    said = run(work, clock=Ticking)
    assert said[0] == f"going on after step {done} of {STEPS}"
    assert losses(work) == pytest.approx(losses(undisturbed), rel=1e-3)
    assert len(of_kind(work, "step")) == STEPS
    assert scores(work.run)[-1]["paused_j"] > before["paused_j"]


def test_nobody_waits_where_nothing_is_known_of_the_grid_and_it_is_said_once(folder: Path) -> None:
    (folder / "evenings.csv").write_text("hour,g_per_kwh\n20,250\n")
    pause = Pause(carbon_g_per_kwh_max=300, carbon_table=str(folder / "evenings.csv"))
    work = work_of(folder, "unknown grid", steps=6, pause=pause)
    said = run(work, clock=Standing)
    assert said.count("the carbon intensity of 2026-03-01T12:00Z is not known") == 1
    assert of_kind(work, "paused") == []
    assert max(losses(work)) == 6

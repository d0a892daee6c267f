"""Checkpoints: a run that was killed comes to the end of one that was not, on any number of workers."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from economizer_compression.manifests import damaged_files, read_manifest
from economizer_training import checkpoints
from economizer_training.distillation import Checkpoints, Mesh
from economizer_training.errors import TrainingError
from economizer_training.handover import hand_over
from economizer_training.record import lines, scores
from economizer_training.shards import Shards
from economizer_training.work import Work
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

STEPS, EVERY = 60, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.make_model(folder / "teacher", blocks=3)
    tiny.make_model(folder / "student", blocks=2, seed=1)
    tiny.make_data(folder / "data", folder / "teacher")
    return folder


def work_of(folder: Path, name: str, mesh: Mesh, **changed: object) -> Work:
    given = {"steps": STEPS, "checkpoints": Checkpoints(every_steps=EVERY, keep_last=2), "learning_rate": 0.003}
    job = tiny.settings(folder, out=str(folder / name), mesh=mesh, **{**given, **changed})
    return tiny.work_of(job, folder, folder / "student")


def losses(work: Work) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(work.run) if line["kind"] == "step"}


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Work:
    work = work_of(folder, "undisturbed", Mesh())
    assert "Traceback" not in "".join(tiny.run(work, Mesh()))
    return work


RESUMED = {
    "as one": Mesh(),
    "as two replicas": Mesh(data=2),
    "as two shards": Mesh(shard=2),
    "as two tensor halves": Mesh(tensor=2),
    "as a pipeline of two": Mesh(pipeline=2),
}


@pytest.mark.parametrize("name", RESUMED)
def test_killed_workers_lose_the_steps_since_the_checkpoint_and_reach_the_same_losses(
    folder: Path, undisturbed: Work, name: str
) -> None:
    first = work_of(folder, f"killed {name}", Mesh(data=2))
    tiny.run_and_kill(first, Mesh(data=2), lambda: checkpoints.last(first.checkpoints) is not None)
    done = max(losses(first))
    mesh = RESUMED[name]
    second = work_of(folder, f"killed {name}", mesh)
    found = checkpoints.last(second.checkpoints)
    assert found is not None
    assert found[1].step >= EVERY
    assert done - found[1].step <= EVERY
    said = tiny.run(second, mesh)
    assert "Traceback" not in "".join(said), "\n".join(said)
    assert said[0] == f"going on after step {found[1].step} of {STEPS}"
    assert losses(second) == pytest.approx(losses(undisturbed), rel=1e-3)
    assert scores(second.run)[-1]["kl"] == pytest.approx(scores(undisturbed.run)[-1]["kl"], rel=1e-3)


def test_a_checkpoint_of_a_pipeline_goes_on_as_one_process(folder: Path, undisturbed: Work) -> None:
    """A stage has the head without the embeddings whose weights it shares, one process has both."""
    first = work_of(folder, "of a pipeline", Mesh(pipeline=2))
    tiny.run_and_kill(first, Mesh(pipeline=2), lambda: checkpoints.last(first.checkpoints) is not None)
    second = work_of(folder, "of a pipeline", Mesh())
    said = tiny.run(second, Mesh())
    assert "Traceback" not in "".join(said), "\n".join(said)
    assert losses(second) == pytest.approx(losses(undisturbed), rel=1e-3)


def test_the_last_checkpoints_stay_and_the_best_one(undisturbed: Work) -> None:
    kls = {score["step"]: score["kl"] for score in scores(undisturbed.run) if score["step"]}
    best = min(kls, key=lambda step: (kls[step], -step))
    kept = {path.name for path in undisturbed.checkpoints.iterdir()}
    assert kept == {f"step-{step:08d}" for step in {STEPS - EVERY, STEPS, best}}


def test_what_is_handed_over_is_the_best_checkpoint_with_its_manifest(folder: Path, undisturbed: Work) -> None:
    out = folder / "handed over"
    manifest = hand_over(undisturbed, Shards.open(folder / "data"), out)
    assert read_manifest(out) == manifest
    assert damaged_files(out, manifest) == []
    assert (manifest.family, manifest.variant, manifest.full) == ("tiny", "distilled", False)
    assert manifest.making is not None
    step = manifest.making.steps[-1]
    assert step.name == "distil"
    assert step.parameters["step"] == min(scores(undisturbed.run)[1:], key=lambda score: score["kl"])["step"]
    student, before = (load_file(each / "model.safetensors") for each in (out, folder / "student"))
    assert torch.equal(student["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(student["model.norm.weight"], before["model.norm.weight"])
    AutoModelForCausalLM.from_pretrained(out)


def test_a_nan_stops_before_it_is_learnt_from_and_says_where_it_came_from(folder: Path) -> None:
    """The teacher's weights have a NaN for a token that the 14th row alone has, which is in the second file."""
    work = work_of(folder, "not finite", Mesh(data=2), checkpoints=Checkpoints(every_steps=2))
    data = tiny.make_data(folder / "marked", folder / "teacher", marked=13)
    teacher = shutil.copytree(folder / "teacher", folder / "broken")
    weights = load_file(teacher / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][tiny.MARK] = float("nan")
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    said = tiny.run(replace(work, teacher=teacher, data=data), Mesh(data=2))
    told = [line.strip().splitlines()[-1] for line in said if "Traceback" in line]
    kept = work.checkpoints / "step-00000002"
    assert told == 2 * [
        "economizer_training.work.LossNotFinite: step 4: the loss or its gradient is not finite for "
        "train-00001.parquet row 4; nothing was learnt from it, and "
        f"the checkpoint {kept} is as good as it was: lower learning_rate, or take precision fp32, or look at the text"
    ]
    assert checkpoints.last(work.checkpoints) is not None
    assert [path.name for path in work.checkpoints.iterdir()] == [kept.name]
    assert sorted(losses(work)) == [1, 2, 3]


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_last_one_whole(folder: Path) -> None:
    work = work_of(folder, "no room", Mesh(), steps=EVERY)
    assert "Traceback" not in "".join(tiny.run(work, Mesh()))
    before = checkpoints.last(work.checkpoints)
    longer = work_of(folder, "no room", Mesh(), steps=2 * EVERY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        told = tiny.run(longer, Mesh())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "TrainingError: the checkpoint" in told[-1]
    assert "cannot be written: " in told[-1].splitlines()[-1]
    assert checkpoints.last(work.checkpoints) == before
    assert [path.name for path in work.checkpoints.glob("*.partial")] == []


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    with pytest.raises(TrainingError, match=r"step-00000003 is damaged: .*: remove it to go on from the one before"):
        checkpoints.last(tmp_path)

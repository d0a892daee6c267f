"""Every way to share the work gives what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from economizer_training.distillation import Mesh
from economizer_training.record import lines, scores
from economizer_training.train import Work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    tiny.make_model(folder / "teacher", blocks=3)
    tiny.make_model(folder / "student", blocks=2, seed=1)
    tiny.make_data(folder / "data", folder / "teacher")
    return folder


def trained(folder: Path, name: str, mesh: Mesh, **changed: object) -> Work:
    job = tiny.settings(folder, mesh=mesh, out=str(folder / name), **changed)
    work = tiny.work_of(job, folder, folder / "student")
    said = tiny.run(work, mesh)
    assert not [line for line in said if "Traceback" in line], "\n".join(said)
    return work


def figures(work: Work) -> list[float]:
    """The loss and the gradient's norm of each step, and the held-out scores."""
    steps = [line for line in lines(work.run) if line["kind"] == "step"]
    found = [line[name] for line in steps for name in ("loss", "gradient_norm")]
    return found + [score[name] for score in scores(work.run) for name in ("kl", "agreement")]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    found = figures(trained(folder, "alone", Mesh()))
    assert len(found) == 6 * 2 + 3 * 2
    return found


def test_a_student_that_learns_comes_nearer_to_its_teacher(alone: list[float]) -> None:
    before, after = alone[-6], alone[-2]
    assert after < 0.9 * before


MESHES = {
    "DDP": Mesh(data=2),
    "FSDP2": Mesh(shard=2),
    "tensor": Mesh(tensor=2),
    "pipeline": Mesh(pipeline=2),
}


@pytest.mark.parametrize("name", MESHES)
def test_two_workers_give_the_losses_of_one(folder: Path, alone: list[float], name: str) -> None:
    assert figures(trained(folder, name, MESHES[name])) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_a_micro_batch_of_more_rows_gives_the_same(folder: Path, alone: list[float]) -> None:
    assert figures(trained(folder, "micro", Mesh(), micro_batch=4)) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_activations_computed_again_give_the_same(folder: Path, alone: list[float]) -> None:
    work = trained(folder, "again", Mesh(), recompute_activations=True)
    assert figures(work) == pytest.approx(alone, rel=1e-4, abs=1e-5)


COMBINED = {
    "replicas of shards": Mesh(data=2, shard=2),
    "replicas of tensors": Mesh(data=2, tensor=2),
    "shards of tensors": Mesh(shard=2, tensor=2),
    "a pipeline of replicas": Mesh(pipeline=2, data=2),
    "a pipeline of shards": Mesh(pipeline=2, shard=2),
    "a pipeline of tensors": Mesh(pipeline=2, tensor=2),
}


@pytest.mark.parametrize("name", COMBINED)
def test_four_workers_that_combine_two_ways_give_the_losses_of_one(folder: Path, alone: list[float], name: str) -> None:
    assert figures(trained(folder, name, COMBINED[name])) == pytest.approx(alone, rel=1e-4, abs=1e-5)

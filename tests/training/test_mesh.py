"""Every way to share the work gives what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from economizer_training.distillation import Loss, Mesh
from economizer_training.record import lines, scores
from economizer_training.work import Work


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


EVERYTHING = {"loss": Loss(divergence="jsd", temperature=2.0, cross_entropy=0.2, hidden=0.5), "freeze": ()}


@pytest.fixture(scope="module")
def alone_with_everything(folder: Path) -> list[float]:
    return figures(trained(folder, "alone with everything", Mesh(), **EVERYTHING))


@pytest.mark.parametrize("name", ["DDP", "FSDP2", "tensor"])
def test_hidden_states_the_mix_and_embeddings_that_learn_are_the_same_on_two_workers(
    folder: Path, alone_with_everything: list[float], name: str
) -> None:
    found = figures(trained(folder, f"{name} with everything", MESHES[name], **EVERYTHING))
    assert found == pytest.approx(alone_with_everything, rel=1e-4, abs=1e-5)


def test_a_pipeline_refuses_embeddings_that_learn_and_are_the_heads_too(folder: Path) -> None:
    work = tiny.work_of(
        tiny.settings(folder, mesh=Mesh(pipeline=2), freeze=(), out=str(folder / "tied")), folder, folder / "student"
    )
    told = [line for line in tiny.run(work, Mesh(pipeline=2)) if "needs frozen embeddings" in line]
    assert len(told) == 2


@pytest.mark.parametrize("name", MESHES)
def test_in_bfloat16_two_workers_learn_what_one_does_but_for_rounding(
    folder: Path, alone: list[float], name: str
) -> None:
    found = figures(trained(folder, f"{name} in bfloat16", MESHES[name], precision="bf16"))
    assert found[:-6:2] == pytest.approx(alone[:-6:2], rel=0.05)
    assert found[-2] == pytest.approx(alone[-2], rel=0.05)

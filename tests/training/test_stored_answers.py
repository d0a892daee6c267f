"""A teacher's answers, made once and kept: what is in the files, and what a student learns from them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from economizer_compression.manifests import read_manifest
from economizer_training.answering import stored_answers
from economizer_training.batches import read_batch
from economizer_training.distill import answer
from economizer_training.distillation import Distillation, Loss, Mesh, TeacherLogits
from economizer_training.errors import TrainingError
from economizer_training.learning import learner, load_fp32
from economizer_training.mesh import Workers
from economizer_training.record import lines, scores
from economizer_training.settings import parse_settings
from economizer_training.shards import Shards
from economizer_training.stored_answers import Answer, Question, StoredAnswers, kept, write_answers
from economizer_training.teachers import AllLogits, Draws, FromStore, InProcess, Teachers, draws, load_teacher
from economizer_training.work import Work

CPU = torch.device("cpu")
STORED = TeacherLogits(kind="stored", samples=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    tiny.make_model(folder / "teacher", blocks=3)
    tiny.make_model(folder / "student", blocks=2, seed=1)
    tiny.make_data(folder / "data", folder / "teacher")
    return folder


def quiet(_: str) -> None:
    """What is said is of no interest."""


def made(folder: Path, samples: int = 12, teacher: str = "a" * 64) -> StoredAnswers:
    job = tiny.settings(folder, teacher_logits=replace(STORED, samples=samples))
    found = stored_answers(job, teacher, Shards.open(folder / "data"), quiet)
    assert found is not None
    return StoredAnswers.open(found)


def question(**changed: Any) -> Question:
    given = {"teacher": "a" * 64, "text": "b" * 64, "kind": "draws", "count": 2, "vocabulary": 61}
    return Question(**{**given, **changed})


@pytest.mark.parametrize(("vocabulary", "stored_as"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_two_bytes_where_the_vocabulary_allows_it(tmp_path: Path, vocabulary: int, stored_as: str) -> None:
    path = tmp_path / "train-00000.parquet"
    write_answers(path, question(vocabulary=vocabulary), [Answer(ids=np.array([[5, vocabulary - 1]]))], 2.5)
    assert str(pq.read_schema(path).field("ids").type.value_type) == stored_as
    assert pq.read_table(path).column("ids").to_pylist() == [[5, vocabulary - 1]]
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    file = kept(path, 1)
    assert file is not None
    assert (file.rows, file.energy_j) == (1, 2.5)
    assert kept(path, 2) is None
    path.write_bytes(path.read_bytes()[:-9])
    assert kept(path, 1) is None


def test_a_row_has_its_answers_where_it_counts_and_a_row_that_only_pads_a_batch_has_none(folder: Path) -> None:
    stored, shards = made(folder), Shards.open(folder / "data")
    batch = read_batch(shards, "train", [11, -1, 3], CPU)
    found = stored.read("train", batch.rows, batch.counts.numpy()).ids
    assert found.shape == (3, tiny.LENGTH, 12)
    assert not found[~batch.counts.numpy()].any()
    ordered = found[batch.counts.numpy()]
    assert (np.diff(ordered, axis=-1) >= 0).all()
    ends = [row.sum() for row in batch.counts.numpy()]
    written = pq.read_table(stored.folder / "train-00001.parquet").column("ids").to_pylist()
    assert found[0][batch.counts[0].numpy()].reshape(-1).tolist() == written[11 - 9]
    assert ends[1] == 0


def test_stored_draws_are_as_frequent_as_the_teacher_finds_them_probable(folder: Path) -> None:
    stored, shards = made(folder, samples=4000), Shards.open(folder / "data")
    batch = read_batch(shards, "train", range(4), CPU)
    found = torch.from_numpy(stored.read("train", batch.rows, batch.counts.numpy()).ids)[batch.counts]
    frequencies = torch.stack([torch.bincount(each, minlength=tiny.VOCABULARY) / 4000 for each in found])
    p = InProcess(load_teacher(folder / "teacher", "fp32", CPU)).answer(batch).logits[batch.counts].softmax(-1)
    assert float((frequencies - p).abs().max()) < 0.05
    torch.testing.assert_close(frequencies.mean(0), p.mean(0), rtol=0, atol=0.01)


def test_answers_are_made_once_for_a_teacher_a_text_and_a_number_of_draws(folder: Path) -> None:
    first = made(folder)
    made_at = (first.folder / "answers.json").stat().st_mtime_ns
    again = made(folder)
    assert (again.folder / "answers.json").stat().st_mtime_ns == made_at
    assert again.folder == first.folder
    assert made(folder, samples=3).folder != first.folder
    assert made(folder, teacher="c" * 64).folder != first.folder
    assert first.folder.parent == folder / "data.answers"


def test_making_that_was_stopped_goes_on_after_the_last_whole_file_and_comes_to_the_same(folder: Path) -> None:
    stored = made(folder, samples=5)
    whole, cut = (stored.folder / f"train-0000{number}.parquet" for number in (0, 1))
    before = whole.stat().st_mtime_ns, pq.read_table(cut)
    (stored.folder / "answers.json").unlink()
    cut.write_bytes(cut.read_bytes()[:200])
    again = made(folder, samples=5)
    assert again.folder == stored.folder
    assert (whole.stat().st_mtime_ns, pq.read_table(cut)) == before
    assert [file.rows for file in again.index.splits["train"]] == [9, 9]
    again.verify()


def test_answers_that_were_changed_are_named(folder: Path, tmp_path: Path) -> None:
    tiny.make_data(tmp_path / "data", folder / "teacher", rows=4)
    job = tiny.settings(tmp_path, teacher=str(folder / "teacher"), teacher_logits=STORED)
    shards = Shards.open(tmp_path / "data")
    found = stored_answers(job, "a" * 64, shards, quiet)
    assert found is not None
    (found / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(TrainingError, match=r"train-00001.parquet is missing or has other content than answers.json"):
        stored_answers(job, "a" * 64, shards, quiet)


def test_answers_to_other_text_are_refused(folder: Path, tmp_path: Path) -> None:
    stored = made(folder)
    everywhere = np.ones((1, tiny.LENGTH), np.bool_)
    with pytest.raises(TrainingError, match=r"train-00000.parquet row 0 has answers to other text"):
        stored.read("train", [0], everywhere)


class Nobody:
    """A teacher that must not be asked."""

    def answer(self, batch: Any, *, hidden: bool = False) -> AllLogits:
        raise AssertionError("the teacher was asked")


def test_a_step_from_stored_answers_asks_no_teacher(folder: Path, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        workers = Workers.join(Mesh(), CPU)
        job = tiny.settings(folder, teacher_logits=STORED)
        teachers = Teachers(learnt_from=FromStore(made(folder), draws), scored_by=Nobody())
        passes = learner(job, teachers, load_fp32(folder / "student", job.freeze, CPU), workers, tiny.LENGTH)
        batch = read_batch(Shards.open(folder / "data"), "train", range(4), CPU)
        assert bool((passes.learn(batch, int(batch.counts.sum())) > 0).all())
    finally:
        torch.distributed.destroy_process_group()


def test_the_gradient_from_stored_draws_nears_the_whole_teachers_as_there_are_more(folder: Path) -> None:
    batch = read_batch(Shards.open(folder / "data"), "train", range(4), CPU)
    teacher = InProcess(load_teacher(folder / "teacher", "fp32", CPU)).answer(batch)

    def gradient(taught: AllLogits | Draws) -> Any:
        student = torch.zeros_like(teacher.logits, requires_grad=True)
        taught.divergence(Loss(), student)[batch.counts].mean().backward()
        return student.grad

    def error(samples: int) -> float:
        ids = made(folder, samples=samples).read("train", batch.rows, batch.counts.numpy()).ids
        return float((gradient(Draws(torch.from_numpy(ids))) - gradient(teacher)).norm())

    few, more = error(12), error(1200)
    assert more == pytest.approx(few / 10, rel=0.15)  # as of a mean of independent draws


def trained(folder: Path, name: str, mesh: Mesh, **changed: Any) -> Work:
    job = tiny.settings(folder, mesh=mesh, out=str(folder / name), **changed)
    answers = stored_answers(job, "a" * 64, Shards.open(folder / "data"), quiet)
    work = replace(tiny.work_of(job, folder, folder / "student"), answers=answers)
    said = tiny.run(work, mesh)
    assert not [line for line in said if "Traceback" in line], "\n".join(said)
    return work


def test_a_student_of_stored_draws_gets_nearly_as_near_to_its_teacher_as_one_of_all_logits(folder: Path) -> None:
    many = {"steps": 60, "learning_rate": 0.003}
    full = scores(trained(folder, "full", Mesh(), **many).run)
    stored = scores(trained(folder, "draws", Mesh(), teacher_logits=replace(STORED, samples=120), **many).run)
    for value in ("kl", "agreement"):  # before the first step: by the same whole teacher
        assert stored[0][value] == full[0][value]
    gains = [each[0]["kl"] - each[-1]["kl"] for each in (full, stored)]
    assert gains[0] > 0.5
    assert gains[1] > 0.9 * gains[0]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Work:
    return trained(folder, "alone", Mesh(), teacher_logits=STORED)


MESHES = {"replicas": Mesh(data=2), "shards": Mesh(shard=2), "halves": Mesh(tensor=2), "pipeline": Mesh(pipeline=2)}


@pytest.mark.parametrize("name", MESHES)
def test_two_workers_learn_from_stored_answers_what_one_does(folder: Path, alone: Work, name: str) -> None:
    work = trained(folder, name, MESHES[name], teacher_logits=STORED)
    for kind, value in (("step", "loss"), ("heldout", "kl")):
        ours, theirs = ([line[value] for line in lines(each.run) if line["kind"] == kind] for each in (work, alone))
        assert ours == pytest.approx(theirs, rel=1e-4)


GIVEN: dict[str, Any] = {
    "teacher": "./teacher", "student": {"folder": "./student"}, "family": "tiny", "variant": "distilled",
    "data": "./text", "out": "./made", "steps": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"teacher_logits": {"kind": "cached"}}, "teacher_logits.kind"),
        ({"teacher_logits": {"kind": "stored", "samples": 0}}, "samples is 0: must be 1 or more"),
        ({"teacher_logits": {"kind": "stored", "draws": 3}}, "teacher_logits.draws: is not a known key here"),
        ({"teacher_logits": {"kind": "http", "model": "a@b"}}, "url is None: must be given for the kind http"),
        (
            {"teacher_logits": {"kind": "stored", "model": "a@b"}},
            "model is 'a@b': must be given for the kind http",
        ),
        ({"teacher_logits": {"kind": "http", "model": "a@b", "url": "ftp://x"}}, "must begin with http:// or https://"),
        (
            {"teacher_logits": {"kind": "stored"}, "loss": {"divergence": "jsd"}},
            "loss.divergence is 'jsd': must be forward_kl where teacher_logits.kind is stored",
        ),
        (
            {"teacher_logits": {"kind": "stored"}, "loss": {"temperature": 2.0}},
            "loss.temperature is 2.0: must be 1.0 where teacher_logits.kind is stored",
        ),
        (
            {"teacher_logits": {"kind": "stored"}, "loss": {"on_policy": 0.5}},
            "loss.on_policy is 0.5: must be 0.0 where teacher_logits.kind is stored",
        ),
    ],
)
def test_settings_that_stored_answers_cannot_serve_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError) as refused:
        parse_settings({**GIVEN, **changed}, Distillation, "run.yaml")
    assert told in str(refused.value)


def test_where_a_teacher_is_served_is_no_part_of_what_a_run_is() -> None:
    def identity(**changed: Any) -> Any:
        told = {"kind": "http", "model": "a@b", "url": "http://one/v1", **changed}
        return parse_settings({**GIVEN, "teacher_logits": told}, Distillation, "run.yaml").identity()

    assert identity() == identity(url="http://two/v1", requests=9, key_env="OTHER")
    assert identity() != identity(model="a@c")
    assert identity() != identity(top=5)


def test_there_is_nothing_to_make_for_a_teacher_in_process(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"teacher_logits.kind: in_process: must be stored or http"):
        answer(tiny.settings(folder), say=quiet)


def command(name: str, config: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "economizer_training.cli", name, str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stderr


def test_a_run_finds_the_answers_that_were_made_before_and_its_manifest_says_what_they_took(tmp_path: Path) -> None:
    tiny.make_model(tmp_path / "teacher", blocks=3)
    tiny.make_data(tmp_path / "data", tmp_path / "teacher")
    content = {
        **{name: str(tmp_path / name) for name in ("teacher", "data", "out")},
        "student": {"config": {"num_hidden_layers": 2}},
        "family": "tiny",
        "variant": "distilled",
        "teacher_logits": {"kind": "stored", "samples": 12},
        "steps": 8,
        "micro_batch": 1,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "mesh": {"data": 2},
        "meter": {"kind": "cpu", "watts_per_core": 10.0, "watts_per_core_idle": 2.0},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(content))
    assert "the teacher's answers: 0.0 MB in " in command("answers", config)
    (index,) = (tmp_path / "data.answers").glob("*/answers.json")
    made_at = index.stat().st_mtime_ns
    command("distill", config)
    assert index.stat().st_mtime_ns == made_at
    making = read_manifest(tmp_path / "out").making
    assert making is not None
    told = making.steps[-1].parameters
    assert told["teacher_answers_energy_j"] > 0
    assert told["teacher_answers_energy_j"] == StoredAnswers.open(index.parent).energy_j
    assert told["teacher_logits"]["kind"] == "stored"
    assert told["heldout_kl"][1] < told["heldout_kl"][0]

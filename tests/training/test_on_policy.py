"""Rows whose answers the student gives itself: which, what it says, and what of it is learnt."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from economizer_training import checkpoints
from economizer_training.batches import read_batch
from economizer_training.distill import distill
from economizer_training.distillation import Checkpoints, Distillation, Loss, Mesh
from economizer_training.errors import TrainingError
from economizer_training.on_policy import OnPolicy, Turn, answer_opening, continued, ends_of, turns
from economizer_training.record import lines, scores
from economizer_training.settings import parse_settings
from economizer_training.shards import Index, Shards, vocabulary_sha256, write_index, write_shard
from economizer_training.work import Work
from transformers import AutoModelForCausalLM, AutoTokenizer

CPU = torch.device("cpu")
ASKS, OPENING, END = 3, [4, 5], 2
TEMPLATE = (
    "{% for m in messages %}{{ 'w3 ' if m.role == 'user' else 'w4 w5 ' }}{{ m.content }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w4 w5 {% endif %}"
)


def with_template(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def make_chats(folder: Path, tokenizer: Path, *, rows: int = 18, held_out: int = 5) -> Path:
    """Rows of a chat of 14 tokens (a question of 4, an answer of 8 with its end) and a document of 8, and padding."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", rows), ("heldout", held_out)):
        ids = random.integers(6, tiny.VOCABULARY, (count, tiny.LENGTH)).astype(np.int32)
        ids[:, 0], ids[:, 4:6], ids[:, 13] = ASKS, OPENING, END
        segments = np.repeat([[1] * 14 + [2] * 8 + [0] * 2], count, axis=0).astype(np.int16)
        splits[split] = (write_shard(folder / f"{split}-00000.parquet", ids, segments),)
    digest = vocabulary_sha256(AutoTokenizer.from_pretrained(tokenizer).get_vocab())
    write_index(folder, Index(length=tiny.LENGTH, vocabulary_sha256=digest, splits=splits))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_policy")
    with_template(tiny.make_model(folder / "teacher", blocks=3))
    with_template(tiny.make_model(folder / "student", blocks=2, seed=1))
    make_chats(folder / "data", folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def student(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32).eval()


def reader(folder: Path, student: Any, share: float = 1.0, ends: frozenset[int] = frozenset({END})) -> OnPolicy:
    shards = Shards.open(folder / "data")
    return OnPolicy(shards, student, share=share, opening=OPENING, ends=ends, device=CPU, within=nullcontext)


def test_the_tokens_that_open_an_answer_are_the_chat_templates(folder: Path) -> None:
    assert answer_opening(AutoTokenizer.from_pretrained(folder / "teacher")) == OPENING


def test_a_teacher_without_a_chat_template_has_none(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.make_model(tmp_path, blocks=1))
    with pytest.raises(TrainingError, match=r"loss.on_policy: must be 0: the teacher's chat template has nothing"):
        answer_opening(tokenizer)


def test_an_answer_ends_where_the_model_or_its_tokenizer_says(folder: Path, student: Any) -> None:
    assert ends_of(student, AutoTokenizer.from_pretrained(folder / "student")) == {END}


def test_the_last_answer_of_each_chat_is_found_and_none_in_a_document() -> None:
    ids = np.array([3, 9, 4, 5, 8, 2, 3, 7, 4, 5, 6, 2, 9, 9, 9, 3, 9, 4, 5, 0], np.int32)
    segments = np.array([1] * 12 + [2] * 3 + [3] * 4 + [0], np.int16)
    assert list(turns(7, ids, segments, OPENING)) == [Turn(at=7, begin=0, answer=10, end=12)]


def test_a_chat_keeps_its_question_and_gets_an_answer_of_which_alone_is_learnt(folder: Path, student: Any) -> None:
    before = read_batch(Shards.open(folder / "data"), "train", range(6), CPU)
    batch = reader(folder, student, ends=frozenset()).read(0, range(6))
    torch.testing.assert_close(batch.input_ids[:, :6], before.input_ids[:, :6])
    torch.testing.assert_close(batch.input_ids[:, 14:], before.input_ids[:, 14:])
    assert bool((batch.input_ids[:, 6:14] != before.input_ids[:, 6:14]).any(1).all())
    learnt = [[at for at, counts in enumerate(row) if counts] for row in batch.counts]
    assert learnt == 6 * [[*range(5, 13), *range(14, 21)]]
    torch.testing.assert_close(batch.mask, before.mask)
    assert batch.rows == tuple(range(6))


def test_after_an_answers_end_is_padding(folder: Path, student: Any) -> None:
    ends = frozenset(range(tiny.VOCABULARY))
    batch = reader(folder, student, ends=ends).read(0, range(4))
    learnt = [[at for at, counts in enumerate(row) if counts] for row in batch.counts]
    assert learnt == 4 * [[5, *range(14, 21)]]
    assert not bool(batch.mask[:, 0, 14:22, 7:14].any())
    assert batch.position_ids[0, 14] == 0


def test_what_is_said_follows_from_the_step_and_the_row_alone(folder: Path, student: Any) -> None:
    read = reader(folder, student, ends=frozenset()).read
    together = read(3, range(8)).input_ids
    torch.testing.assert_close(torch.cat([read(3, [row]).input_ids for row in range(8)]), together)
    torch.testing.assert_close(read(3, range(8)).input_ids, together)
    assert bool((read(4, range(8)).input_ids != together).any(1).all())


def test_so_many_rows_are_answered_anew_as_the_share_says(folder: Path, student: Any) -> None:
    before = read_batch(Shards.open(folder / "data"), "train", range(18), CPU)
    read = reader(folder, student, share=0.25).read
    changed = [(read(step, range(18)).counts != before.counts).any(1).sum().item() for step in range(40)]
    assert sum(changed) / (40 * 18) == pytest.approx(0.25, abs=0.05)


def test_the_student_says_each_token_as_often_as_it_finds_it_probable(student: Any) -> None:
    prompt, count = [3, 9, 10, 4, 5], 4000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    said = torch.tensor(continued(student, [prompt] * count, [1] * count, frozenset(), generators))
    with torch.no_grad():
        p = student(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    torch.testing.assert_close(torch.bincount(said[:, 0], minlength=tiny.VOCABULARY) / count, p, rtol=0, atol=0.03)


def test_prompts_of_unlike_lengths_are_continued_together_as_each_alone(student: Any) -> None:
    prompts = [[3, 9, 4, 5], [3, 9, 10, 11, 12, 13, 4, 5], [3, 4, 5]]
    lengths = [6, 3, 8]

    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    said = continued(student, prompts, lengths, frozenset(), seeded(0, 1, 2))
    assert [len(each) for each in said] == lengths
    for index, prompt in enumerate(prompts):
        (generator,), ids = seeded(index), list(prompt)
        for _ in range(lengths[index]):
            with torch.no_grad():
                p = student(torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)
            ids.append(int(torch.multinomial(p, 1, generator=generator)))
        assert said[index] == ids[len(prompt) :]


def work_of(folder: Path, name: str, mesh: Mesh, **changed: Any) -> Work:
    given = {"loss": Loss(divergence="reverse_kl", on_policy=0.5), "checkpoints": Checkpoints(every_steps=3)}
    job = tiny.settings(folder, out=str(folder / name), mesh=mesh, learning_rate=0.003, **{**given, **changed})
    return tiny.work_of(job, folder, folder / "student")


def losses(work: Work) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(work.run) if line["kind"] == "step"}


def trained(work: Work) -> Work:
    said = tiny.run(work, work.job.mesh)
    assert "Traceback" not in "".join(said), "\n".join(said)
    return work


def test_two_replicas_hear_and_learn_what_one_does(folder: Path) -> None:
    alone, replicas = (trained(work_of(folder, f"of {size}", Mesh(data=size))) for size in (1, 2))
    assert losses(replicas) == pytest.approx(losses(alone), rel=1e-4)
    assert scores(replicas.run)[-1]["kl"] == pytest.approx(scores(alone.run)[-1]["kl"], rel=1e-4)


def test_a_run_that_was_killed_hears_and_learns_the_same_again(folder: Path) -> None:
    undisturbed = trained(work_of(folder, "undisturbed", Mesh(), steps=40))
    killed = work_of(folder, "killed", Mesh(), steps=40)
    tiny.run_and_kill(killed, Mesh(), lambda: checkpoints.last(killed.checkpoints) is not None)
    trained(killed)
    assert losses(killed) == pytest.approx(losses(undisturbed), rel=1e-4)


def test_a_student_that_is_taught_on_what_it_says_nears_its_teacher(folder: Path) -> None:
    learnt = scores(trained(work_of(folder, "all", Mesh(), steps=60, loss=Loss(on_policy=1.0))).run)
    assert learnt[-1]["kl"] < 0.9 * learnt[0]["kl"]


GIVEN: dict[str, Any] = {
    "teacher": "./teacher", "student": {"folder": "./student"}, "family": "tiny", "variant": "distilled",
    "data": "./text", "out": "./made", "steps": 10, "batch": 8, "loss": {"on_policy": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("dimension", ["shard", "tensor", "pipeline"])
def test_a_student_of_which_no_worker_has_all_is_not_sampled_from(dimension: str) -> None:
    with pytest.raises(TrainingError, match=r"loss.on_policy is 0.5: must be 0 where mesh.shard, tensor or pipeline"):
        parse_settings({**GIVEN, "mesh": {dimension: 2}}, Distillation, "run.yaml")
    assert parse_settings({**GIVEN, "mesh": {"data": 2}}, Distillation, "run.yaml").loss.on_policy == 0.5


def test_a_run_without_it_is_the_one_of_a_release_that_did_not_have_it() -> None:
    identity = parse_settings({**GIVEN, "loss": {}}, Distillation, "run.yaml").identity()
    assert identity["teacher_logits"] is None
    assert "on_policy" not in identity["loss"]
    assert parse_settings(GIVEN, Distillation, "run.yaml").identity()["loss"]["on_policy"] == 0.5


def test_text_without_chats_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    tiny.make_data(tmp_path / "data", folder / "teacher", rows=2)
    changed = {"teacher": str(folder / "teacher"), "loss": Loss(on_policy=0.5)}
    with pytest.raises(TrainingError, match=r"loss.on_policy: must be 0: no row of .*data has a chat with an answer"):
        distill(tiny.settings(tmp_path, **changed), say=print)

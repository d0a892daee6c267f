"""A teacher that another process serves: what is asked, what is kept of its answers, and what when it is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from economizer_training.answering import stored_answers
from economizer_training.batches import read_batch
from economizer_training.distillation import Mesh, TeacherLogits
from economizer_training.errors import TrainingError
from economizer_training.record import lines, scores
from economizer_training.shards import Shards
from economizer_training.stored_answers import StoredAnswers
from economizer_training.teacher_http import Endpoint, Patience
from economizer_training.teachers import InProcess, load_teacher
from economizer_training.work import Work
from served import Reply, Served, error

CPU = torch.device("cpu")
TOP = 6
QUICK = Patience(first_s=0.02, longest_s=0.2, say_every_s=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http")
    tiny.make_model(folder / "teacher", blocks=3)
    tiny.make_model(folder / "student", blocks=2, seed=1)
    tiny.make_data(folder / "data", folder / "teacher")
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    served = Served(folder / "teacher")
    served.start()
    yield served
    served.stop()


def settings(served: Served, **changed: Any) -> TeacherLogits:
    return TeacherLogits(**{"kind": "http", "url": served.url, "model": "tiny@full", "top": TOP, **changed})


def endpoint(folder: Path, served: Served, say: Callable[[str], None] = print, **changed: Any) -> Endpoint:
    shards = Shards.open(folder / "data")
    return Endpoint(settings(served, **changed), shards, tiny.VOCABULARY, say, QUICK)


def nothing() -> None:
    """For each row that is answered."""


def await_(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_the_answers_are_the_most_probable_tokens_that_the_same_model_has_in_process(
    folder: Path, served: Served
) -> None:
    answers, joules = endpoint(folder, served).answers("train", range(9, 18), nothing)
    batch = read_batch(Shards.open(folder / "data"), "train", range(9, 18), CPU)
    logits = InProcess(load_teacher(folder / "teacher", "fp32", CPU)).answer(batch).logits[batch.counts]
    expected = logits.log_softmax(-1).topk(TOP)
    log_p = [answer.log_p for answer in answers if answer.log_p is not None]
    assert len(answers) == len(log_p) == 9
    assert np.concatenate([answer.ids for answer in answers]).tolist() == expected.indices.tolist()
    torch.testing.assert_close(torch.from_numpy(np.concatenate(log_p)), expected.values, rtol=1e-4, atol=1e-4)
    assert joules is None


def test_a_row_is_one_request_of_its_documents_with_the_tenants_key_and_in_the_flex_tier(
    folder: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "eco-1")
    served.headers["x-economizer-variant"] = "full"
    served.headers["x-energy-joules"] = "1.5"
    _, joules = endpoint(folder, served, key_env="TEACHER_KEY", requests=1).answers("train", range(2), nothing)
    (ids, _), (segments, _) = Shards.open(folder / "data").read("train", [0, 1])
    headers, body = served.seen[0]
    assert body == {
        "model": "tiny@full",
        "prompt": [ids[segments == 1].tolist(), ids[segments == 2].tolist()],
        "prompt_logprobs": TOP,
        "max_tokens": 1,
        "temperature": 1.0,
        "service_tier": "flex",
    }
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer eco-1"
    assert joules == 3.0


def test_an_endpoint_that_goes_away_is_waited_for_and_no_row_is_left_out(folder: Path, served: Served) -> None:
    said: list[str] = []
    gone = threading.Event()

    def goes_away(_: int) -> Reply | None:
        if len(served.seen) == 4 and not gone.is_set():
            gone.set()
            threading.Thread(target=served.stop).start()
        return None

    served.instead = goes_away
    asked = endpoint(folder, served, said.append, requests=2)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(asked.answers("train", range(18), nothing)))
    asking.start()
    await_(lambda: len(said) >= 2)  # again and again
    assert asking.is_alive()
    served.start()
    asking.join(60)
    assert [len(answer.ids) for answer in found[0][0]] == [
        int(row.sum()) for row in read_batch(Shards.open(folder / "data"), "train", range(18), CPU).counts
    ]
    assert said[0].startswith(f"waiting for the teacher at {served.url}/completions, which does not answer (Connect")


def test_a_busy_server_is_asked_again_when_it_says_so(folder: Path, served: Served) -> None:
    busy = [
        error(429, "too many wait", "rate_limit_exceeded", **{"retry-after": "1"}),
        error(503, "no engine is ready", "not_ready"),
        (200, {}, b'{"choices": [{"index": 0, "prompt_lo'),
    ]
    served.instead = lambda number: busy[number - 1] if number <= len(busy) else None
    began_s = time.monotonic()
    answers, _ = endpoint(folder, served).answers("train", range(1), nothing)
    assert len(answers) == 1
    assert len(served.seen) == 4
    assert time.monotonic() - began_s >= 1


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (error(401, "no key that works", "invalid_api_key"), "refuses with 401: no key that works"),
        (error(429, "the budget of the day is spent", "insufficient_quota"), "refuses with 429: the budget of the day"),
        ((400, {}, b'{"message": "max allowed: 20", "code": 400}'), "refuses with 400: max allowed: 20"),
        ((404, {}, b"<h1>Not here</h1>"), "refuses with 404: <h1>Not here</h1>"),
        ((200, {}, b'{"choices": []}'), "gave 0 choices for 2 prompts"),
        ((200, {}, b'{"choices": [{"index": 1}, {"index": 0}]}'), "gives no prompt_logprobs, as vLLM does"),
        (
            (200, {"x-economizer-variant": "int8", "x-economizer-degraded": "usd"}, b"{}"),
            "answered by the variant int8, since usd: teacher_logits.model is tiny@full: must name the teacher's",
        ),
    ],
)
def test_what_waiting_does_not_mend_ends_the_run_with_the_servers_words(
    folder: Path, served: Served, reply: Reply, told: str
) -> None:
    served.instead = lambda _: reply
    with pytest.raises(TrainingError) as refused:
        endpoint(folder, served).answers("train", range(3), nothing)
    assert told in str(refused.value)


def test_a_gateway_that_may_choose_among_variants_is_no_teacher(folder: Path, served: Served) -> None:
    served.headers["x-economizer-variant"] = "full"
    with pytest.raises(
        TrainingError, match=r"teacher_logits.model is tiny: must name the teacher's \(family@variant\)"
    ):
        endpoint(folder, served, model="tiny").answers("train", range(1), nothing)


def test_a_server_with_other_tokens_or_too_few_of_them_is_refused(folder: Path, served: Served) -> None:
    with pytest.raises(TrainingError, match=r"must give 6 tokens of the teacher's 9 each time"):
        Endpoint(settings(served), Shards.open(folder / "data"), 9, print, QUICK).answers("train", range(1), nothing)


def job_of(folder: Path, served: Served, name: str, **changed: Any) -> Any:
    return tiny.settings(folder, out=str(folder / name), teacher_logits=settings(served), **changed)


def test_a_run_that_was_refused_halfway_asks_only_for_the_files_that_it_lacks(folder: Path, served: Served) -> None:
    shards, digest = Shards.open(folder / "data"), "d" * 64
    served.instead = lambda number: error(403, "enough", "permission_denied") if number > 14 else None
    job = job_of(folder, served, "resumed", steps=1)
    with pytest.raises(TrainingError, match="refuses with 403: enough"):
        stored_answers(job, digest, shards, print)
    (parent,) = [each for each in (folder / "data.answers").iterdir() if (each / "train-00000.parquet").exists()]
    assert sorted(each.name for each in parent.iterdir()) == ["lock", "train-00000.parquet"]
    served.instead = lambda _: None
    served.seen.clear()
    found = stored_answers(job, digest, shards, print)
    assert found == parent
    assert len(served.seen) == 9 + 5
    assert {
        split: [file.rows for file in files] for split, files in StoredAnswers.open(parent).index.splits.items()
    } == {
        "train": [9, 9],
        "heldout": [3, 2],
    }
    served.seen.clear()
    assert stored_answers(job, digest, shards, print) == found
    assert served.seen == []


def trained(folder: Path, served: Served, name: str, mesh: Mesh, **changed: Any) -> Work:
    job = job_of(folder, served, name, mesh=mesh, **changed)
    answers = stored_answers(job, "e" * 64, Shards.open(folder / "data"), print)
    work = replace(tiny.work_of(job, folder, folder / "student"), answers=answers, teacher=folder / "none")
    said = tiny.run(work, mesh)
    assert not [line for line in said if "Traceback" in line], "\n".join(said)
    return work


def test_a_student_learns_and_is_scored_where_no_worker_has_the_teacher(folder: Path, served: Served) -> None:
    many = {"steps": 60, "learning_rate": 0.003}
    by_http = scores(trained(folder, served, "by http", Mesh(), **many).run)
    full = tiny.settings(folder, out=str(folder / "in process"), **many)
    whole = tiny.work_of(full, folder, folder / "student")
    assert "Traceback" not in "".join(tiny.run(whole, Mesh()))
    in_process = scores(whole.run)
    assert by_http[0]["kl"] < in_process[0]["kl"]  # 6 tokens and a rest tell less than 61
    assert by_http[0]["agreement"] == in_process[0]["agreement"]
    assert by_http[-1]["kl"] < 0.9 * by_http[0]["kl"]


def test_two_workers_learn_from_a_served_teacher_what_one_does(folder: Path, served: Served) -> None:
    alone = trained(folder, served, "alone", Mesh())
    for name, mesh in (("replicas", Mesh(data=2)), ("pipeline", Mesh(pipeline=2))):
        work = trained(folder, served, name, mesh)
        for kind, value in (("step", "loss"), ("heldout", "kl")):
            ours, theirs = ([line[value] for line in lines(each.run) if line["kind"] == kind] for each in (work, alone))
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_more_tokens_than_there_are_beside_a_rest_are_refused(folder: Path, served: Served) -> None:
    job = tiny.settings(folder, teacher_logits=settings(served, top=61))
    with pytest.raises(TrainingError, match=r"teacher_logits.top: 61: must be less than the 61 tokens there are"):
        stored_answers(job, "f" * 64, Shards.open(folder / "data"), print)

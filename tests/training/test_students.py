"""Where students begin, and which are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from economizer_training.distill import distill
from economizer_training.distillation import Distillation, Loss, StudentSource
from economizer_training.errors import TrainingError
from economizer_training.students import initial_student, matched
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.make_model(tmp_path / "teacher", blocks=4)
    tiny.make_data(tmp_path / "data", tmp_path / "teacher")
    return tmp_path


def quiet(_: str) -> None:
    """What is said is of no interest."""


def of_config(folder: Path, **config: Any) -> Distillation:
    return tiny.settings(folder, student=StudentSource(config=config))


def test_a_student_of_the_teachers_shape_is_the_teacher(folder: Path) -> None:
    student = initial_student(of_config(folder, num_hidden_layers=4), quiet)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(each)(ids).logits for each in (student, folder / "teacher"))
    torch.testing.assert_close(one, other)


def test_a_student_is_stored_as_its_teacher_is(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder / "teacher").bfloat16().save_pretrained(folder / "teacher")
    student = initial_student(of_config(folder, num_hidden_layers=2), quiet)
    assert {weight.dtype for weight in load_file(student / "model.safetensors").values()} == {torch.bfloat16}


def test_a_shallow_narrow_student_has_the_leading_channels_of_blocks_evenly_over_the_teachers(folder: Path) -> None:
    job = of_config(folder, num_hidden_layers=2, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
    student = initial_student(job, quiet)
    small, large = (load_file(each / "model.safetensors") for each in (student, folder / "teacher"))
    for block, taught in ((0, 1), (1, 3)):
        for name, rows in (("mlp.up_proj", 16), ("self_attn.q_proj", 16), ("self_attn.v_proj", 8)):
            mine = small[f"model.layers.{block}.{name}.weight"]
            torch.testing.assert_close(mine, large[f"model.layers.{taught}.{name}.weight"][:rows])
    assert AutoModelForCausalLM.from_pretrained(student).config.num_attention_heads == 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"intermediate_size": 64}, "must be no larger than the teacher"),
        ({"layers": 3}, "student.config: layers: is no setting of a llama"),
    ],
)
def test_a_shape_that_the_teacher_cannot_fill_is_refused(folder: Path, config: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        initial_student(of_config(folder, **config), quiet)
    assert not (folder / "distilled.run" / "student").exists()


def test_blocks_are_matched_by_depth_and_the_last_with_the_last() -> None:
    assert [matched(block, 3, 9) for block in (1, 2, 3)] == [3, 6, 9]
    assert [matched(block, 4, 6) for block in (1, 2, 3, 4)] == [2, 3, 5, 6]


def with_other_tokens(folder: Path) -> Distillation:
    tiny.make_model(folder / "other", blocks=2)
    file = folder / "other" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {f"v{number}": number for number in range(tiny.VOCABULARY)}
    content["model"]["unk_token"] = "v0"
    file.write_text(json.dumps(content))
    return tiny.settings(folder, student=StudentSource(folder=str(folder / "other")))


def with_more_logits(folder: Path) -> Distillation:
    tiny.make_model(folder / "other", blocks=2, vocabulary=tiny.VOCABULARY + 3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "teacher" / name, folder / "other" / name)
    return tiny.settings(folder, student=StudentSource(folder=str(folder / "other")))


def with_other_text(folder: Path) -> Distillation:
    tiny.make_model(folder / "other", blocks=2, vocabulary=tiny.VOCABULARY + 3)
    shutil.rmtree(folder / "data")
    tiny.make_data(folder / "data", folder / "other")
    return of_config(folder, num_hidden_layers=2)


def with_another_width(folder: Path) -> Distillation:
    config = {"num_hidden_layers": 2, "hidden_size": 16}
    return tiny.settings(folder, student=StudentSource(config=config), loss=Loss(hidden=1.0))


def with_a_changed_shard(folder: Path) -> Distillation:
    with (folder / "data" / "train-00001.parquet").open("r+b") as file:
        file.seek(40)
        file.write(b"?")
    return of_config(folder, num_hidden_layers=2)


def with_no_data(folder: Path) -> Distillation:
    shutil.rmtree(folder / "data")
    return of_config(folder, num_hidden_layers=2)


def begun_otherwise(folder: Path) -> Distillation:
    (folder / "distilled.run").mkdir()
    job = tiny.settings(folder)
    told = json.dumps({"settings": {**job.identity(), "steps": 7}, "teacher": "x", "text": "y", "student": None})
    (folder / "distilled.run" / "run.json").write_text(told)
    return job


REFUSED = {
    with_other_tokens: "other has another tokenizer than its teacher",
    with_more_logits: "other: vocab_size 64 is not the 61 of its teacher",
    with_other_text: "data was tokenised by another tokenizer than",
    with_another_width: "loss.hidden: must be 0 where widths differ: the student's hidden_size is 16",
    with_a_changed_shard: "train-00001.parquet has other content than shards.json says: prepare the data anew",
    with_no_data: "data has no shards.json: make it with `economizer-train prepare`",
    begun_otherwise: "distilled.run was begun with other settings, teacher, text: remove it to begin anew",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_cannot_work_is_refused_before_any_worker_starts(folder: Path, make: Any) -> None:
    job = make(folder)
    with pytest.raises(TrainingError) as refused:
        distill(job, say=quiet)
    assert REFUSED[make] in str(refused.value)

"""What a distillation's YAML file may say."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from economizer_training.distillation import Distillation, Mesh
from economizer_training.errors import TrainingError
from economizer_training.mesh import refuse_shapes
from economizer_training.settings import load_settings, parse_settings
from transformers import LlamaConfig

GIVEN: dict[str, Any] = {
    "teacher": "./teacher",
    "student": {"steps": [{"depth_prune": {"keep": 0.667}}]},
    "family": "tiny",
    "variant": "distilled",
    "data": "./text",
    "out": "./made/distilled",
    "steps": 100,
}


def parsed(**changed: Any) -> Distillation:
    return parse_settings({**GIVEN, **changed}, Distillation, "run.yaml")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"steps": 0}, "steps is 0: must be 1 or more"),
        ({"speed": 3}, "run.yaml: speed: is not a known key here"),
        ({"loss": {"divergence": "hellinger"}}, "loss.divergence"),
        ({"student": {}}, "must have exactly one of steps, folder and config"),
        ({"student": {"folder": "a", "config": {"num_hidden_layers": 2}}}, "must have exactly one of"),
        ({"batch": 6}, "batch is 6: must be a multiple of mesh.data * mesh.shard * micro_batch, which is 4"),
        ({"mesh": {"data": 2}}, "batch is 4: must be a multiple of mesh.data * mesh.shard * micro_batch, which is 8"),
        ({"mesh": {"tensor": 0}}, "tensor is 0: must be 1 or more"),
        ({"loss": {"hidden": 1.0}, "mesh": {"pipeline": 2}}, "loss.hidden is 1.0: must be 0 where mesh.pipeline"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_key_value_and_rule(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError) as refused:
        parsed(**changed)
    assert told in str(refused.value)


def test_the_rate_rises_over_the_warm_up_and_falls_by_a_cosine() -> None:
    job = parsed(learning_rate=0.4, final_learning_rate=0.2, warmup_steps=4, steps=12)
    rates = [round(job.learning_rate_at(step), 6) for step in range(13)]
    assert rates[:5] == [0.1, 0.2, 0.3, 0.4, 0.4]
    assert rates[8] == 0.3
    assert rates[12] == 0.2
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_steps_take_rows_one_after_the_other_and_begin_again_at_the_end() -> None:
    job = parsed(batch=4)
    assert [job.rows_of(step, 10) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_how_a_run_is_shared_out_is_no_part_of_what_it_is() -> None:
    other = parsed(mesh={"shard": 2}, micro_batch=1, recompute_activations=True, restarts=0, out="./elsewhere")
    assert other.identity() == parsed().identity()
    assert parsed(learning_rate=0.5).identity() != parsed().identity()


def test_a_mesh_counts_its_workers() -> None:
    assert Mesh(data=2, shard=3, tensor=5, pipeline=7).workers == 210
    assert Mesh(data=2, shard=3, tensor=5, pipeline=7).batches == 6


LLAMA = LlamaConfig(
    architectures=["LlamaForCausalLM"], num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
    num_hidden_layers=20, hidden_size=576, head_dim=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        (Mesh(tensor=2), "mesh.tensor 2 does not divide the student's num_attention_heads, 9: take a divisor"),
        (Mesh(tensor=9), "mesh.tensor 9 does not divide the student's num_key_value_heads, 3"),
        (Mesh(pipeline=21), "mesh.pipeline 21 is more than the student's 20 blocks"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(mesh: Mesh, told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        refuse_shapes(mesh, "student", LLAMA)


def test_a_mesh_that_divides_the_model_is_not_refused() -> None:
    refuse_shapes(Mesh(tensor=3, pipeline=20, shard=5), "student", LLAMA)


def test_a_model_of_another_build_is_taught_by_replicas_alone() -> None:
    other = LlamaConfig(architectures=["GPT2LMHeadModel"])
    refuse_shapes(Mesh(data=8), "student", other)
    with pytest.raises(TrainingError, match=r"the student is a GPT2LMHeadModel: only mesh.data may be above 1"):
        refuse_shapes(Mesh(shard=2), "student", other)


def test_the_shipped_runs_can_be_read() -> None:
    found = sorted(tiny.RUNS.glob("distill*.yaml"))
    assert [path.stem for path in found] == ["distill-20", "distill"]
    for path in found:
        assert load_settings(path, Distillation).family == "smollm2-135m"

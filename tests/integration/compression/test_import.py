"""A tiny checkpoint in AutoGPTQ's older layout, taken over and loaded in the compression environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
JOB = Path(__file__).with_name("tiny_import.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the job says of one good checkpoint and of damaged copies of it."""
    words = [
        *(ROOT / ".venvs/compression/bin/python", JOB, tmp_path_factory.mktemp("import")),
        ROOT / ".economizer/models/smollm2-135m-instruct",
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_older_layout_is_taken_over_in_the_form_that_engines_load(found: Any) -> None:
    assert found["import"]["code"] == 0
    files = ["config.json", "manifest.json", "model.safetensors", "quantize_config.json"]
    assert found["files"] == [*files, "tokenizer.json", "tokenizer_config.json"]
    assert found["settings"] == {
        **{"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": True, "sym": False},
        **{"true_sequential": True, "quant_method": "gptq"},
    }


def test_the_original_stays_as_it_was(found: Any) -> None:
    assert found["original"] is None


def test_the_manifest_names_the_format_and_every_file(found: Any) -> None:
    manifest = found["manifest"]
    assert (manifest["family"], manifest["variant"], manifest["full"]) == ("tiny", "w4", False)
    assert manifest["quantization"].startswith("gptq")
    assert sorted(manifest["files"]) == [name for name in found["files"] if name != "manifest.json"]
    assert manifest["making"] is None


def test_it_computes_what_the_dense_weights_compute(found: Any) -> None:
    assert found["spread"] > 0.1
    assert found["difference"] == 0


def test_nothing_is_imported_over_what_is_there(found: Any) -> None:
    assert found["again"]["code"] == 1
    assert "exists already" in found["again"]["said"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no config.json", "FOLDER is no model folder: it has no config.json"),
        ("no tokenizer", "FOLDER has no tokenizer: one of tokenizer.json, tokenizer.model, vocab.json must lie in it"),
        (
            ".bin weights",
            "FOLDER has no *.safetensors weights (gptq_model-4bit-32g.bin would have to be converted first)",
        ),
        ("half a file", "FOLDER/gptq_model-4bit-32g.safetensors is damaged: "),
        ("3 bits", "FOLDER/quantize_config.json: bits: 3: must be one of (2, 4, 8)"),
        ("marlin", "FOLDER/quantize_config.json: is_marlin_format: True: must be false"),
        ("foreign settings", "FOLDER/quantize_config.json: {'bits': 4, 'quant_method': 'awq'}: must be a mapping"),
        ("no JSON", "FOLDER/quantize_config.json cannot be read: "),
        ("NaN", "gptq_model-4bit-32g.safetensors has NaN or infinity in model.layers.1.mlp.up_proj.scales"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_in_a_line(found: Any, damage: str, message: str) -> None:
    refused = found["refused"][damage]
    assert refused["code"] == 1
    assert refused["said"].startswith(f"economizer-compress: {message}")


def test_nothing_is_left_of_what_was_refused(found: Any) -> None:
    assert found["left"] == ["good", "imported"]


def test_groups_that_are_not_there_are_told_with_their_layer(found: Any) -> None:
    message = "FOLDER: the packed tensors of model.layers.0.mlp.down_proj do not fit together: "
    assert found["misfit"].startswith(message)

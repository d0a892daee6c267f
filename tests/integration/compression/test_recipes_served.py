"""Every recipe makes a checkpoint that vLLM serves and in which it computes what transformers computes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from economizer.variants.manifest import Manifest
from economizer_compression.manifests import damaged_files, read_manifest
from economizer_compression.recipes import SHIPPED

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
ENGINE_ENV = {
    **{"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    **{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
}
RECIPES = sorted(file.stem for file in SHIPPED.glob("*.yaml") if not file.stem.startswith("autogptq"))
# How far a token's log probability may be from transformers', in nats: bfloat16 rounds in another order, activations of
# eight bits are rounded at other places, and a random model's log probabilities are around -11.
LARGEST, MEAN = 0.5, 0.1


def run(environment: str, script: str, *arguments: Path, env: Mapping[str, str]) -> None:
    done = subprocess.run(
        [ROOT / ".venvs" / environment / "bin" / "python", HERE / script, *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every variant, what transformers says of each, and what vLLM says."""
    folder = tmp_path_factory.mktemp("recipes")
    model = ROOT / ".economizer" / "models" / "smollm2-135m-instruct"
    run("compression", "every_recipe.py", folder, model, env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    run("engine", "every_engine.py", folder, env=ENGINE_ENV)
    return folder


@pytest.fixture(scope="module")
def manifests(made: Path) -> dict[str, Manifest]:
    return {name: read_manifest(made / name) for name in RECIPES}


def said(made: Path, file: str) -> Any:
    return json.loads((made / file).read_text())


@pytest.mark.parametrize("name", ["full", *RECIPES])
def test_vllm_computes_what_transformers_computes(made: Path, name: str) -> None:
    served, expected = said(made, "served.json")[name], said(made, "expected.json")[name]
    assert not isinstance(served, str), served
    differences = [
        abs(ours - theirs)
        for text, other in zip(served, expected, strict=True)
        for ours, theirs in zip(text, other, strict=True)
    ]
    assert len(differences) == sum(len(text) for text in expected)
    assert max(differences) < LARGEST
    assert sum(differences) / len(differences) < MEAN


@pytest.mark.parametrize("name", RECIPES)
def test_a_variant_says_how_it_was_made_and_its_files_are_whole(
    made: Path, manifests: Mapping[str, Manifest], name: str
) -> None:
    manifest = manifests[name]
    assert manifest.making is not None
    assert manifest.making.recipe == name
    assert manifest.making.steps
    assert manifest.making.versions["torch"]
    assert damaged_files(made / name, manifest) == []
    assert not (made / f"{name}.work").exists()


def test_calibration_is_recorded_where_there_was_some(manifests: Mapping[str, Manifest]) -> None:
    calibrated = {name for name, manifest in manifests.items() if manifest.making and manifest.making.calibration}
    assert calibrated == set(RECIPES) - {"int8-rtn", "fp8-dynamic"}
    making = manifests["int8"].making
    assert making is not None
    assert making.calibration is not None
    assert (making.calibration.samples, making.calibration.tokens, making.calibration.seed) == (4, 256, 0)


@pytest.mark.parametrize(("name", "count"), [("int8", 35), ("gptq-w4a16", 35), ("sparse24", 35), ("depth-prune", 1)])
def test_each_modules_loss_is_kept(manifests: Mapping[str, Manifest], name: str, count: int) -> None:
    making = manifests[name].making
    assert making is not None
    assert len(making.module_losses) == count
    assert all(loss >= 0 for loss in making.module_losses.values())


def test_a_sweep_keeps_the_candidate_nearest_to_the_model_and_tells_of_all(manifests: Mapping[str, Manifest]) -> None:
    making = manifests["gptq-w4a16"].making
    assert making is not None
    assert [candidate.parameters for candidate in making.candidates] == [
        {"gptq.observer": "minmax"},
        {"gptq.observer": "mse"},
    ]
    (chosen,) = [candidate for candidate in making.candidates if candidate.chosen]
    assert chosen.kl_mean == min(candidate.kl_mean for candidate in making.candidates)
    assert making.steps[-1].parameters["observer"] == chosen.parameters["gptq.observer"]


def test_blocks_and_channels_are_really_gone(made: Path) -> None:
    configs = {name: json.loads((made / name / "config.json").read_text()) for name in ("full", *RECIPES)}
    assert configs["depth-prune"]["num_hidden_layers"] == 4
    assert configs["width-prune"]["intermediate_size"] == 192
    assert configs["full"]["intermediate_size"] == 256


def test_eight_bit_weights_are_about_half_and_four_bit_ones_about_a_quarter(manifests: Mapping[str, Manifest]) -> None:
    embeddings = 49152 * 128 * 2
    sizes = {name: manifest.size_bytes - embeddings for name, manifest in manifests.items()}
    full = 5 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 256) * 2
    assert 0.5 < sizes["int8"] / full < 0.65
    assert 0.25 < sizes["gptq-w4a16"] / full < 0.45
    assert sizes["sparse24"] / full == pytest.approx(1, abs=0.1)

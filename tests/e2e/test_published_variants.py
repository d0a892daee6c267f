"""From a recipe to a request: what the compression job measured decides which variant answers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compress import ROOT, compress
from fleet import Fleet
from openai import OpenAI

QUESTION: Any = [{"role": "user", "content": "What is an economizer? Answer in one sentence."}]


@pytest.fixture(scope="package")
def int8(store: Path) -> dict[str, Any]:
    """What the catalogue says of INT8."""
    catalogue = yaml.safe_load((store / "catalogue.yaml").read_text())
    entry: dict[str, Any] = catalogue["families"]["smollm2-135m"]["variants"]["int8"]
    return entry


def answering(client: OpenAI, floor: float | None = None) -> str:
    headers = {} if floor is None else {"x-quality-min": f"{floor:.4f}"}
    raw = client.chat.completions.with_raw_response.create(
        model="smollm2-135m", messages=QUESTION, max_tokens=2, extra_headers=headers
    )
    return str(raw.headers["x-economizer-variant"])


def test_what_was_measured_is_in_the_catalogue(int8: dict[str, Any]) -> None:
    assert int8["routed"] is True
    assert 0.8 < int8["quality"]["low"] < int8["quality"]["score"] < 1
    assert int8["top1_agreement"] == pytest.approx(int8["quality"]["score"], abs=1e-3)
    assert 0 < int8["kl_mean"] < 0.1
    assert int8["speed"]["prefill_tokens_per_s"] > 0
    assert set(int8["speed"]["decode_tokens_per_s"]) == {1, 8}
    assert "CPU time at 3.75 W a core, 0.75 W idle" in int8["energy"]["source"]
    assert 100e6 < int8["size_bytes"] < 200e6


def test_a_floor_under_the_measured_quality_is_answered_by_int8_and_one_over_it_by_the_full_model(
    client: OpenAI, int8: dict[str, Any]
) -> None:
    low = int8["quality"]["low"]
    assert answering(client) == "int8"
    assert answering(client, low - 0.001) == "int8"
    assert answering(client, low + 0.001) == "bf16"


def test_the_engine_serves_the_published_checkpoint(fleet: Fleet, store: Path) -> None:
    views = {view.name.partition("-")[0]: view for view in (store / "checkpoints" / "smollm2-135m").iterdir()}
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in fleet.processes()]
    for variant in ("bf16", "int8"):
        assert any(str(views[variant]) in command for command in commands), variant


def test_the_receipts_joules_are_those_of_the_measured_card(client: OpenAI, int8: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model="smollm2-135m@int8", messages=QUESTION, max_tokens=16)
    assert answer.usage is not None
    receipt = answer.usage.model_extra["economizer"]  # type: ignore[index]
    energy = int8["energy"]
    prefill = answer.usage.prompt_tokens * energy["prefill_j_per_token"]
    decode = answer.usage.completion_tokens * energy["decode_j_per_token"][1]
    assert 0.5 * prefill < receipt["energy_j"] < 1.5 * (prefill + decode)


def test_the_table_of_variants_shows_what_was_measured(fleet: Fleet, int8: dict[str, Any]) -> None:
    command = [ROOT / ".venv" / "bin" / "economizer", "variants", fleet.file, "--json"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = {row["name"]: row for row in shown}
    row = rows["smollm2-135m@int8"]
    assert row["quality_low"] == int8["quality"]["low"]
    assert row["kl_mean"] == int8["kl_mean"]
    assert row["size_bytes"] == int8["size_bytes"]
    assert row["energy_j_per_token"] == int8["energy"]["decode_j_per_token"][8]
    assert rows["smollm2-135m@bf16"]["quality"] == 1.0


def test_the_store_holds_what_two_variants_share_once(store: Path) -> None:
    found = json.loads(compress("list", "--store", store, "--json").partition("\n}")[0] + "\n}")
    assert [each["name"] for each in found["variants"]] == ["smollm2-135m@bf16", "smollm2-135m@int8"]
    assert found["copies_bytes"] - found["stored_bytes"] > 49152 * 576 * 2  # the embedding, in bfloat16
    assert "nothing to remove" in compress("clean", "--store", store, "--yes")


def test_the_published_folder_has_a_card_and_a_plot(store: Path) -> None:
    (view,) = (store / "checkpoints" / "smollm2-135m").glob("int8-*")
    card = (view / "README.md").read_text()
    assert "int8-rtn" in card
    assert (view / "family.png").read_bytes().startswith(b"\x89PNG")


def test_a_variant_that_was_not_measured_stays_out(store: Path, tmp_path: Path) -> None:
    made = tmp_path / "fp8"
    full = next((store / "checkpoints" / "smollm2-135m").glob("bf16-*"))
    compress("run", "fp8-dynamic", "--model", full, "--out", made, "--family", "smollm2-135m", "--variant", "fp8")
    said = compress("gate", made, "--store", store, code=3)
    assert "it was not evaluated" in said

"""`economizer-train prepare` on real Ray Data: a few dozen documents, prepared twice in the training environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venvs" / "compression" / "bin" / "python"
MODEL = ROOT / ".economizer" / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepare")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "tiny_prepare.py", folder, MODEL],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["first"][0] == 0, result["first"][1]
    return result


@pytest.fixture(scope="module")
def card(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "first" / "data-card.json").read_text())
    return told


def dropped(card: dict[str, Any], stage: str) -> dict[str, int]:
    counts: dict[str, int] = next(each["dropped"] for each in card["stages"] if each["name"] == stage)
    return counts


def test_text_json_lines_parquet_and_chats_are_all_read(card: dict[str, Any]) -> None:
    sources = {source["name"]: (source["files"], source["examples"]) for source in card["sources"]}
    assert sources == {"pages": (3, 28), "chats": (1, 21), "sums": (1, 4)}


def test_poor_foreign_and_evaluated_text_is_dropped_by_name(card: dict[str, Any]) -> None:
    assert dropped(card, "filter")["language"] == 1
    assert dropped(card, "filter")["words_min"] == 1
    assert dropped(card, "decontaminate") == {"evaluation": 1}


def test_duplicates_are_found_across_files(card: dict[str, Any]) -> None:
    assert dropped(card, "exact duplicates") == {"pages": 2}
    assert dropped(card, "near duplicates") == {"pages": 1}


def test_every_stage_takes_what_the_one_before_it_left(card: dict[str, Any]) -> None:
    names = [stage["name"] for stage in card["stages"]]
    assert names == [
        *("read", "clean", "filter", "mask", "decontaminate"),
        *("exact duplicates", "near duplicates", "length outliers", "perplexity outliers"),
        *("repeat rare slices", "tokenise"),
    ]
    for before, after in zip(card["stages"], card["stages"][1:], strict=False):
        assert (before["examples_out"], before["bytes_out"]) == (after["examples_in"], after["bytes_in"])


def test_private_text_is_masked_and_mojibake_is_repaired(found: dict[str, Any], card: dict[str, Any]) -> None:
    text = "".join(text for _, text in found["segments"])
    assert card["masked"] == {"email": 1}
    assert "ada@example.com" not in text
    assert "Write to <EMAIL>." in text
    assert "The café on the corner" in text


def test_chats_are_in_the_models_template_and_unanswered_ones_are_dropped(
    found: dict[str, Any], card: dict[str, Any]
) -> None:
    turns = "<|im_start|>user\nWhat is 3 and one?<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>\n"
    assert [text.endswith(turns) for _, text in found["segments"]].count(True) == 1
    assert dropped(card, "tokenise") == {"no_answer": 1}


def test_a_rare_slice_comes_twice_with_one_template_after_the_other(found: dict[str, Any]) -> None:
    learnt = [text for split, text in found["segments"] if split == "train" and "Twice" in text]
    assert len(learnt) == 6  # of four, one is held out
    assert sum("Compute. Twice" in text for text in learnt) == 3


def test_the_teacher_answers_what_nobody_has_answered(found: dict[str, Any]) -> None:
    assert found["asked"][0] == 0
    told = [text.partition("<|im_start|>assistant\n") for text in found["answers"]]
    assert len(told) == 4
    assert all("<|im_start|>user\nTwice" in prompt and answer.strip() for prompt, _, answer in told)


@pytest.fixture(scope="module")
def taught(found: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = found["taught"]
    assert result["run"][0] == 0, result["run"][1]
    return result


@pytest.fixture(scope="module")
def taught_card(taught: dict[str, Any], folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "taught" / "data-card.json").read_text())
    return told


def test_what_the_teacher_finds_far_less_likely_than_its_kind_is_dropped_by_name(
    taught: dict[str, Any], taught_card: dict[str, Any]
) -> None:
    assert dropped(taught_card, "perplexity outliers")["plain"] == 1
    assert not any("zq xvk" in whole for _, whole, _ in taught["learnt"])
    assert [span["name"] for span in taught_card["spans"]][2] == "ask how likely"


def test_paraphrases_of_the_teachers_are_learnt_from_beside_their_sources(
    taught: dict[str, Any], taught_card: dict[str, Any]
) -> None:
    counts = taught_card["paraphrased"]
    kept, drawn = counts["kept"], sum(counts.values())
    stage = next(stage for stage in taught_card["stages"] if stage["name"] == "paraphrase")
    assert 0 < kept == stage["repeated"] == stage["examples_out"] - stage["examples_in"]
    assert 0.25 < drawn / stage["examples_in"] < 0.75  # half of what is learnt from
    assert len(taught["learnt"]) == stage["examples_out"]
    sources = [whole for _, whole, _ in taught["learnt"] if whole.startswith("Every morning a farmer sells ")]
    assert len(set(sources)) >= 23


def test_of_a_chat_what_the_assistant_says_counts_and_of_a_document_everything(taught: dict[str, Any]) -> None:
    for _, whole, counted in taught["learnt"]:
        if "<|im_start|>" not in whole:
            assert counted == whole
    answers = {counted for _, whole, counted in taught["learnt"] if "What is 3 and one?" in whole}
    assert answers == {"4.<|im_end|>"}
    asked = [(whole, counted) for _, whole, counted in taught["learnt"] if "Twice" in whole]
    assert len(asked) >= 4
    assert all(counted and whole.endswith(f"<|im_start|>assistant\n{counted}") for whole, counted in asked)


def test_each_turn_of_the_assistants_counts_with_what_ends_it(found: dict[str, Any]) -> None:
    assert found["turns"]["said"] == "4.<|im_end|>5.<|im_end|>"


def test_a_chat_whose_template_writes_turns_otherwise_once_others_follow_is_refused_by_name(
    found: dict[str, Any],
) -> None:
    assert found["turns"]["cut"] == "template_mixes_turns"


def test_what_the_teacher_said_once_it_is_not_asked_again_for_the_same_rows(taught: dict[str, Any]) -> None:
    assert (taught["again"], taught["same"], taught["asked_again"]) == (0, True, False)
    assert taught["asked"] >= 2  # its answers, and its paraphrases


def test_nothing_is_learnt_from_that_is_held_out(found: dict[str, Any]) -> None:
    texts: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split, text in found["segments"]:
        texts[split].add(text)
    assert texts["heldout"]
    assert not texts["train"] & texts["heldout"]


def test_the_same_seed_and_files_give_the_same_bytes(found: dict[str, Any]) -> None:
    assert found["again"][0] == 0
    assert found["same"]


def test_the_card_tells_joules_of_the_workers(card: dict[str, Any]) -> None:
    assert [span["name"] for span in card["spans"]] == ["read and judge", "compare and choose", "tokenise and write"]
    assert all(span["energy_j"] > span["active_j"] > 0 for span in card["spans"])


def test_the_folder_holds_shards_their_index_the_cards_and_what_was_learnt(found: dict[str, Any]) -> None:
    assert found["files"] == [
        *("README.md", "calibration.ngrams", "data-card.json", "heldout-00000.parquet"),
        *("shards.json", "train-00000.parquet", "train-00001.parquet"),
    ]
    assert found["ngrams"] > 1000


def test_a_file_in_mixed_encodings_ends_the_run_with_its_place(found: dict[str, Any]) -> None:
    code, said = found["broken"]
    assert code == 1
    assert "broken.txt line 2: byte 0xff at 9 is not utf-8; the 1 lines before it are: the file mixes encodings" in said
    assert "Traceback" not in said


def test_a_run_that_leaves_nothing_says_which_rules_did_it(found: dict[str, Any]) -> None:
    code, said = found["short"]
    assert code == 1
    assert "nothing is left to learn from: of 1 examples were dropped by words_min 1" in said


def test_a_run_that_fails_leaves_no_folder_that_a_job_would_take(found: dict[str, Any]) -> None:
    assert found["whole"] == ["again", "asked", "first", "taught", "taught-again"]


def test_texts_that_are_nearly_the_same_are_told_from_those_that_only_begin_alike(found: dict[str, Any]) -> None:
    assert found["near"] == {"2": 0}
    assert found["none_near"] == {}

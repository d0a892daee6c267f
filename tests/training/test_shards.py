"""Packed rows, as they are written and as a model sees them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from economizer_training.batches import PADDING, counted, positions, read_batch, scored, visible
from economizer_training.errors import TrainingError
from economizer_training.shards import Index, Shards, vocabulary_sha256, write_index, write_shard
from transformers import AutoModelForCausalLM

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0]], dtype=np.int16)


def test_positions_begin_anew_in_each_document() -> None:
    assert positions(SEGMENTS)[0].tolist() == [0, 1, 2, 0, 1, 0]


def test_a_position_counts_where_the_next_token_is_of_its_document() -> None:
    assert counted(SEGMENTS)[0].tolist() == [True, True, False, True, False, False]


def test_a_position_sees_what_is_before_it_in_its_document() -> None:
    seen = [[at for at in range(6) if row[at]] for row in visible(SEGMENTS)[0, 0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [5]]


def test_documents_in_one_row_get_the_logits_that_each_gets_alone(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.make_model(tmp_path / "model", blocks=2)).eval()
    ids = np.array([[5, 9, 30, 7, 8, 2]], dtype=np.int32)
    shard = write_shard(tmp_path / "train-00000.parquet", ids, SEGMENTS)
    write_index(tmp_path, Index(length=6, vocabulary_sha256="0" * 64, splits={"train": (shard,)}))
    batch = read_batch(Shards.open(tmp_path), "train", [0], torch.device("cpu"))
    with torch.no_grad():
        packed = model(batch.input_ids, attention_mask=batch.mask, position_ids=batch.position_ids).logits[0]
        first, second = (model(torch.tensor([each])).logits[0] for each in ([5, 9, 30], [7, 8]))
    torch.testing.assert_close(packed[:3], first)
    torch.testing.assert_close(packed[3:5], second)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Rows 0 to 4 in two files; each row's tokens are its number."""
    ids = np.repeat(np.arange(5, dtype=np.int32)[:, None], 6, axis=1)
    segments = np.repeat(SEGMENTS, 5, axis=0)
    files = tuple(
        write_shard(tmp_path / f"train-0000{number}.parquet", ids[part], segments[part])
        for number, part in enumerate((slice(2), slice(2, None)))
    )
    write_index(tmp_path, Index(length=6, vocabulary_sha256="0" * 64, splits={"train": files}))
    return Shards.open(tmp_path)


def test_rows_are_found_across_files_by_their_number(shards: Shards) -> None:
    ids, segments = shards.read("train", [4, 1, 2])
    assert ids[:, 0].tolist() == [4, 1, 2]
    assert segments.tolist() == 3 * SEGMENTS.tolist()
    assert shards.place("train", 4) == "train-00001.parquet row 2"
    assert (shards.rows("train"), shards.rows("heldout"), shards.length) == (5, 0, 6)
    assert [shard.tokens for shard in shards.index.splits["train"]] == [10, 15]


def test_a_row_that_only_pads_a_batch_counts_nothing(shards: Shards) -> None:
    batch = read_batch(shards, "train", [3, PADDING], torch.device("cpu"))
    assert batch.counts.sum(1).tolist() == [3, 0]


def test_rows_say_which_tokens_are_to_be_learnt_where_the_index_says_that_they_do(shards: Shards) -> None:
    assert shards.counted("train", [0, 3]).all()
    marks = np.array([[False, False, True, True, False, False]])
    folder = shards.folder / "marked"
    folder.mkdir()
    shard = write_shard(folder / "train-00000.parquet", np.zeros((1, 6), np.int32), SEGMENTS, marks)
    write_index(folder, replace(shards.index, counted="assistant", splits={"train": (shard,)}))
    marked = Shards.open(folder)
    assert marked.counted("train", [0]).tolist() == marks.tolist()
    assert scored(marked, "train", [0]).tolist() == [[False, True, False, False, False, False]]
    batch = read_batch(marked, "train", [0, PADDING], torch.device("cpu"))
    assert batch.counts.sum(1).tolist() == [1, 0]


def test_a_folder_of_an_older_release_counts_every_token(shards: Shards) -> None:
    index = json.loads((shards.folder / "shards.json").read_text())
    assert index.pop("counted") == "all"
    (shards.folder / "shards.json").write_text(json.dumps(index))
    assert Shards.open(shards.folder).counted("train", [4]).all()


def test_a_file_that_was_changed_is_named(shards: Shards) -> None:
    shards.verify()
    (shards.folder / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(TrainingError, match=r"train-00001.parquet has other content than shards.json says"):
        shards.verify()
    with pytest.raises(TrainingError, match=r"train-00001.parquet cannot be read as packed rows"):
        shards.read("train", [3])
    (shards.folder / "train-00001.parquet").unlink()
    with pytest.raises(TrainingError, match=r"train-00001.parquet is missing"):
        shards.verify()


def test_an_index_that_is_none_is_refused(shards: Shards) -> None:
    (shards.folder / "shards.json").write_text('{"format": 1, "length": 6}')
    with pytest.raises(TrainingError, match=r"shards.json is no index that this release reads: vocabulary_sha256"):
        Shards.open(shards.folder)
    with pytest.raises(ValueError, match="must have rows to train on"):
        replace(shards.index, splits={})


def test_a_vocabulary_is_the_same_in_any_order_and_another_with_other_ids() -> None:
    assert vocabulary_sha256({"a": 0, "b": 1}) == vocabulary_sha256({"b": 1, "a": 0})
    assert vocabulary_sha256({"a": 1, "b": 0}) != vocabulary_sha256({"a": 0, "b": 1})

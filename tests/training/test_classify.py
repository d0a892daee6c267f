"""``economizer-train classify`` as a user runs it, on a tiny BERT and some sixty texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from economizer_training.classify.compare import OUTCOMES
from economizer_training.classify.model import classifier, padded
from economizer_training.classify.settings import Run
from economizer_training.classify.text import Labelled, cleaned, distinct
from economizer_training.classify.train import Work, accuracy, learn
from economizer_training.data.config import Deduplication
from economizer_training.errors import TrainingError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "card", "lost", "late", "top", "up", "failed", "rate", "of", "exchange", "my", "the", "is")
SAID = {"lost": "my card is lost", "top up": "the top up failed", "exchange": "the rate of exchange is late"}
METER = {"kind": "cpu", "watts_per_core": 10.0, "watts_per_core_idle": 2.0}
PLAIN = {"epochs": 8, "batch": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    make_encoder(folder / "encoder")
    fillers = ("my", "the", "is", "card", "of")
    rows = [(f"{one} {said} {other}", name) for name, said in SAID.items() for one in fillers for other in fillers[:4]]
    for name, part in (("train", rows), ("test", rows[::7])):
        lines = "".join(f"{text},{label}\n" for text, label in part)
        (folder / f"{name}.csv").write_text(f"text,category\n{lines}")
    return folder


def make_encoder(folder: Path) -> None:
    config = BertConfig(
        **{"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "max_position_embeddings": 64},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2},
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def written(folder: Path, name: str, **changed: Any) -> Path:
    content = {
        "encoder": str(folder / "encoder"),
        "train": "train.csv",
        "test": "test.csv",
        "out": str(folder / name),
        "plain": PLAIN,
        "measures": [
            {"name": "prepared", "preparation": {"near": 0.8, "words": 1}},
            {"name": "two workers", "by_length": True, "blocks": [0, 2], "freeze": ["embeddings"], "workers": 2},
        ],
        "meter": METER,
        **changed,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def called(config: Path, *, code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-m", "economizer_training.cli", "classify", str(config), "--data", str(config.parent)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_runs_are_compared_with_what_each_of_all_its_processes_cost_and_are_not_made_again(folder: Path) -> None:
    table, _ = called(written(folder, "compared"))
    report = json.loads((folder / "compared" / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["plain", "prepared", "two workers"]
    plain, prepared, ours = (run["outcomes"][0] for run in report["runs"])
    assert (plain["accuracy"], ours["accuracy"]) == (1.0, 1.0)
    assert plain["texts"] == 60
    assert prepared["texts"] == ours["texts"] < 60
    cores = len(os.sched_getaffinity(0))
    for outcome in (plain, prepared, ours):
        cost = outcome["cost"]
        assert cost["energy_j"] == pytest.approx(8 * cost["cpu_s"] + 2 * cores * cost["seconds"], rel=0.01)
    # Ray and its workers are below the process that is measured: each imports torch, as the plain run's one does.
    assert ours["cost"]["cpu_s"] > 1.5 * plain["cost"]["cpu_s"]
    assert report["reached"]["half the energy"] is False
    assert table == (folder / "compared" / "report.md").read_text()
    again, told = called(folder / "compared.yaml")
    assert (again, told) == (table, "")
    assert len((folder / "compared" / OUTCOMES).read_text().splitlines()) == 3


def test_what_goes_wrong_in_a_run_is_told_in_a_line(folder: Path) -> None:
    config = written(folder, "wrong", plain={**PLAIN, "learning_rate": 1e30})
    _, told = called(config, code=1)
    assert told.splitlines()[-1].startswith("economizer-train: plain: step ")
    assert told.splitlines()[-1].endswith(": the gradient is not finite: lower learning_rate, or take fp32")
    config = written(folder, "deep", measures=[{"name": "cut", "blocks": [1, 4]}])
    _, told = called(config, code=1)
    assert told == f"economizer-train: cut: blocks: [1, 4]: {folder / 'encoder'} has 4, counted from 0\n"


def work_of(folder: Path, name: str, **changed: Any) -> Work:
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, (40,), generator=random).tolist()
    lengths = torch.randint(2, 9, (40,), generator=random).tolist()
    ids = [[2 + 3 * target + at % 3 for at in range(length)] for target, length in zip(targets, lengths, strict=True)]
    run = replace(Run(epochs=3, batch=8, learning_rate=0.003, by_length=True), **changed)
    out = folder / f"{name}.pt"
    return Work(run=run, seed=1, encoder=folder / "encoder", ids=ids, targets=targets, classes=3, out=out)


def test_two_workers_learn_what_one_does(folder: Path) -> None:
    one = work_of(folder, "one")
    learn(one, rank=0, say=lambda _: None)
    two = replace(work_of(folder, "two"), run=replace(one.run, workers=2))
    context = get_context("fork")
    told = context.SimpleQueue()
    workers = [context.Process(target=work_as, args=(two, rank, folder / "store", told)) for rank in range(2)]
    for worker in workers:
        worker.start()
    assert [told.get() for _ in workers] == ["", ""]
    for worker in workers:
        worker.join()
    torch.testing.assert_close(logits(two), logits(one), rtol=1e-3, atol=1e-3)
    assert accuracy(two, two.ids, two.targets) == accuracy(one, one.ids, one.targets) > 0.9


@torch.no_grad()
def logits(work: Work) -> torch.Tensor:
    model = classifier(work.encoder, work.classes, work.run).eval()
    model.load_state_dict(torch.load(work.out))
    return model(*padded(work.ids))


def work_as(work: Work, rank: int, store: Path, told: Any) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=work.run.workers)
        learn(work, rank=rank, say=lambda _: None)
        dist.destroy_process_group()
        told.put("")
    except Exception:  # noqa: BLE001  # told to the test, in whose process it is not
        told.put(traceback.format_exc())


def test_blocks_that_are_named_stay_and_frozen_parts_do_not_learn(folder: Path) -> None:
    whole = classifier(folder / "encoder", 3, Run())
    cut = classifier(folder / "encoder", 3, Run(blocks=(0, 3), freeze=("embeddings",)))
    kept, blocks = cut.encoder.encoder.layer, whole.encoder.encoder.layer
    assert len(kept) == 2
    for mine, theirs in zip(kept, (blocks[0], blocks[3]), strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    frozen = {name.split(".")[1] for name, parameter in cut.named_parameters() if not parameter.requires_grad}
    assert frozen == {"embeddings"}


def test_padding_changes_no_text_s_logits(folder: Path) -> None:
    model = classifier(folder / "encoder", 3, Run()).eval()
    alone = model(*padded([[2, 3, 4]]))
    beside = model(*padded([[2, 3, 4], [5, 6, 7, 8, 9, 10, 11]]))
    torch.testing.assert_close(beside[:1], alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_built_otherwise_is_not_cut(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaModel(config).save_pretrained(folder / "llama")
    with pytest.raises(TrainingError, match=r"is a LlamaModel: only encoders built as BERT are cut"):
        classifier(folder / "llama", 3, Run(blocks=(0,)))


def test_what_a_class_has_twice_or_nearly_goes_and_what_another_class_has_stays() -> None:
    texts = ("Where is my card?", "where is my card", "where is my card now", "Where is my card?", "top up failed")
    found = Labelled(texts=texts, classes=("arrival", "arrival", "arrival", "lost", "arrival"))
    exact = distinct(found, Deduplication(near=None))
    assert exact == found.part([0, 2, 3, 4])
    near = distinct(found, Deduplication(near=0.7, words=1))
    assert near == found.part([0, 3, 4])


def test_cleaning_keeps_every_text_and_its_class() -> None:
    found = cleaned(Labelled(texts=("caf\u00c3\u00a9  now\u200b", "plain"), classes=("a", "b")))
    assert found == Labelled(texts=("caf\u00e9 now", "plain"), classes=("a", "b"))

"""A tiny teacher, a smaller student and a little text, made in a second, and workers that are forked processes."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from economizer.energy.meter import EmptyMeter, Meter
from economizer_training.distillation import Checkpoints, Distillation, Mesh, StudentSource
from economizer_training.mesh import Workers
from economizer_training.pacing import Clock, SystemClock
from economizer_training.shards import Index, vocabulary_sha256, write_index, write_shard
from economizer_training.train import train
from economizer_training.work import Work
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

RUNS = Path(__file__).parents[2] / "training" / "runs"
VOCABULARY = 61
LENGTH = 24


def make_model(folder: Path, *, blocks: int, vocabulary: int = VOCABULARY, tied: bool = True, seed: int = 0) -> Path:
    """A random Llama with a tokenizer of single letters."""
    config = LlamaConfig(
        **{"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": blocks},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512},
        **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, "tie_word_embeddings": tied},
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2").save_pretrained(folder)
    return folder


MARK = VOCABULARY - 1


def make_data(folder: Path, tokenizer: Path, *, rows: int = 18, held_out: int = 5, marked: int | None = None) -> Path:
    """Rows of two random documents each, and padding. The training row ``marked`` alone has the token MARK."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", rows), ("heldout", held_out)):
        ids = random.integers(3, MARK, (count, LENGTH)).astype(np.int32)
        if split == "train" and marked is not None:
            ids[marked, 0] = MARK
        segments = np.zeros((count, LENGTH), dtype=np.int16)
        for row in segments:
            middle, end = random.integers(4, 12), random.integers(16, LENGTH + 1)
            row[:middle], row[middle:end] = 1, 2
        half = (count + 1) // 2
        parts = enumerate((slice(half), slice(half, None)))
        splits[split] = tuple(
            write_shard(folder / f"{split}-{number:05d}.parquet", ids[part], segments[part]) for number, part in parts
        )
    digest = vocabulary_sha256(AutoTokenizer.from_pretrained(tokenizer).get_vocab())
    write_index(folder, Index(length=LENGTH, vocabulary_sha256=digest, splits=splits))
    return folder


def settings(folder: Path, **changed: Any) -> Distillation:
    """Six steps of four rows in single precision."""
    given = {
        "teacher": str(folder / "teacher"),
        "student": StudentSource(config={"num_hidden_layers": 2}),
        "family": "tiny",
        "variant": "distilled",
        "data": str(folder / "data"),
        "out": str(folder / "distilled"),
        "steps": 6,
        "batch": 4,
        "micro_batch": 1,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "precision": "fp32",
        "heldout_rows": 5,
        "checkpoints": Checkpoints(every_steps=3),
    }
    return Distillation(**{**given, **changed})


def work_of(job: Distillation, folder: Path, student: Path) -> Work:
    """The work of a job whose models and data lie in the folder."""
    job.run.mkdir(exist_ok=True)
    return Work(job=job, teacher=folder / "teacher", student=student, data=folder / "data", run=job.run)


def no_meter() -> Meter:
    return EmptyMeter("a test")


def run(
    work: Work, mesh: Mesh, *, meter: Callable[[], Meter] = no_meter, clock: Callable[[], Clock] = SystemClock
) -> list[str]:
    """Trains on forked workers; returns what they said, and what went wrong with each, in the order of their ranks."""
    processes, told = _start(work, mesh, meter, clock)
    ended = sorted(told.get() for _ in processes)
    for process in processes:
        process.join()
    return [line for _, lines in ended for line in lines]


def run_and_kill(
    work: Work,
    mesh: Mesh,
    now: Callable[[], bool],
    *,
    meter: Callable[[], Meter] = no_meter,
    clock: Callable[[], Clock] = SystemClock,
) -> None:
    """Trains until ``now`` says so, then kills one worker at once, and the others, which wait for it."""
    processes, _ = _start(work, mesh, meter, clock)
    deadline_s = time.monotonic() + 120
    while not now():
        assert time.monotonic() < deadline_s, "it did not come so far"
        assert all(process.is_alive() for process in processes), "a worker ended before it was killed"
        time.sleep(0.002)
    for process in processes:
        process.kill()
        process.join()


def _start(work: Work, mesh: Mesh, *made: Callable[[], Any]) -> tuple[list[Any], Any]:
    context = get_context("fork")
    told = context.SimpleQueue()
    store = work.run / f"store-{os.urandom(4).hex()}"
    given = (work, mesh, store, told, *made)
    processes = [context.Process(target=_worker, args=(rank, *given)) for rank in range(mesh.workers)]
    for process in processes:
        process.start()
    return processes, told


def _worker(
    rank: int,
    work: Work,
    mesh: Mesh,
    store: Path,
    told: Any,
    meter: Callable[[], Meter],
    clock: Callable[[], Clock],
) -> None:
    said: list[str] = []
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=mesh.workers)
        train(work, Workers.join(mesh, torch.device("cpu")), meter(), said.append, clock())
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001  # told to the test, in whose process it is not
        said.append(traceback.format_exc())
    told.put((rank, said))

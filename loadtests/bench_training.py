"""How near a distillation comes to the limit that its arithmetic sets on this machine.

The limit: the matrix products of a step, at the rates that the same workers and threads reach with nothing else than
such products, of the model's own shapes. A product with an [n, m] matrix is 2nm operations a token: once in a forward
pass, and twice in a backward pass, for the gradient of its input and of the matrix (Kaplan et al., arXiv:2001.08361,
table 1; PaLM, arXiv:2204.02311, appendix B). So for a token of a row of T:

    teacher, forward alone:  blocks * 2P + 2H         + blocks * 4Td
    student:                 blocks * 6P + 4H         + blocks * 12Td

with P entries in a block's matrices, H = vocabulary * width in the head, which is frozen and so needs no gradient of
its own, d = heads * head width, and attention over all T positions, as PaLM counts it. An embedding is looked up.

What is measured is `economizer_training.train` on workers that are processes on gloo with their share of the cores as
threads, as Ray Train starts them, on random text. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from economizer.config import home
from economizer.energy.meter import EmptyMeter
from economizer_training.distillation import Checkpoints, Distillation, Mesh, StudentSource
from economizer_training.fit_ray import KEEP_FREED_MEMORY
from economizer_training.mesh import Workers
from economizer_training.record import lines
from economizer_training.shards import Index, Shard, Split, write_index, write_shard
from economizer_training.students import Vocabulary, initial_student
from economizer_training.train import train
from economizer_training.work import Work
from transformers import AutoConfig

_TEACHER = ".economizer/models/smollm2-135m-instruct"
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WARM_STEPS = 3
_RATE_S = 0.25  # for each product


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """[left, inner] @ [inner, right], ``batch`` of them at once and ``times`` a step of ``rows`` rows."""

    times: int
    left: int
    inner: int
    right: int
    batch: int = 1

    @property
    def operations(self) -> int:
        """Of all of them."""
        return 2 * self.times * self.batch * self.left * self.inner * self.right

    def transposed(self) -> Iterator[Product]:
        """The two products of a backward pass: the gradient of the first matrix, and of the second."""
        yield replace(self, inner=self.right, right=self.inner)
        yield replace(self, left=self.inner, inner=self.left)


def forward(config: Any, rows: int, length: int) -> tuple[list[Product], list[Product]]:
    """The products of a forward pass over ``rows`` rows: of the blocks, and of the head."""
    blocks, tokens, width = config.num_hidden_layers, rows * length, config.hidden_size
    heads, each = config.num_attention_heads, config.head_dim
    linear = {
        heads * each: 1,  # queries
        config.num_key_value_heads * each: 2,  # keys, values
        config.intermediate_size: 2,  # gate, up
    }
    found = [Product(times=blocks * n, left=tokens, inner=width, right=out) for out, n in linear.items()]
    found += [
        Product(times=blocks, left=tokens, inner=heads * each, right=width),
        Product(times=blocks, left=tokens, inner=config.intermediate_size, right=width),
        Product(times=blocks, left=length, inner=each, right=length, batch=rows * heads),  # scores
        Product(times=blocks, left=length, inner=length, right=each, batch=rows * heads),  # values
    ]
    return found, [Product(times=1, left=tokens, inner=width, right=config.vocab_size)]


def step(teacher: Any, student: Any, rows: int, length: int) -> list[Product]:
    """All products of a step of ``rows`` rows."""
    blocks, head = forward(student, rows, length)
    backward = [product for each in blocks for product in each.transposed()]
    backward += [next(each.transposed()) for each in head]  # frozen: the gradient of its input alone
    return [*(each for part in forward(teacher, rows, length) for each in part), *blocks, *head, *backward]


def seconds(products: list[Product], kind: torch.dtype) -> float:
    """What the products take at the best rate that this process comes to, each shape by itself."""
    shapes = {replace(product, times=1) for product in products}
    best = {shape: _best_s(shape, kind) for shape in sorted(shapes, key=repr)}
    return sum(product.times * best[replace(product, times=1)] for product in products)


def _best_s(shape: Product, kind: torch.dtype) -> float:
    left = torch.randn(shape.batch, shape.left, shape.inner, dtype=kind)
    right = torch.randn(shape.batch, shape.inner, shape.right, dtype=kind)
    layouts = [right, right.transpose(1, 2).contiguous().transpose(1, 2)]  # as backward and forward passes have it
    if shape.batch == 1:
        left, layouts = left[0], [each[0] for each in layouts]
    dist.barrier()  # the workers share caches and memory here as they do in a step
    best, until_s = float("inf"), time.perf_counter() + _RATE_S
    while time.perf_counter() < until_s:
        for layout in layouts:
            begun_s = time.perf_counter()
            left @ layout
            best = min(best, time.perf_counter() - begun_s)
    return best


def make_text(folder: Path, teacher: Path, rows: int, length: int) -> None:
    """Rows of three documents of random tokens."""
    folder.mkdir()
    vocabulary, random = Vocabulary.of(teacher), np.random.default_rng(0)
    splits: dict[Split, tuple[Shard, ...]] = {}
    for split in ("train", "heldout"):
        ids = random.integers(3, vocabulary.logits, (rows, length)).astype(np.int32)
        ends = np.sort(random.integers(1, length, (rows, 2)), axis=1)
        segments = (1 + (np.arange(length)[None, :, None] >= ends[:, None, :]).sum(2)).astype(np.int16)
        splits[split] = (write_shard(folder / f"{split}-00000.parquet", ids, segments),)
    write_index(folder, Index(length=length, vocabulary_sha256=vocabulary.sha256, splits=splits))


def worker(rank: int, work: Work, products: list[Product], profile: bool) -> None:
    """One of the workers: the rates, then the steps."""
    count = work.job.mesh.workers
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    dist.init_process_group("gloo", init_method=f"file://{work.run / 'store'}", rank=rank, world_size=count)
    found = {name: seconds(products, kind) for name, kind in _TYPES.items()}
    (work.run / f"rates-{rank}.json").write_text(json.dumps(found))
    workers = Workers.join(work.job.mesh, torch.device("cpu"))
    learn: Callable[[], None] = lambda: train(work, workers, EmptyMeter("a benchmark"), lambda line: None)  # noqa: E731
    if profile and rank == 0:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            learn()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))
    else:
        learn()
    dist.destroy_process_group()


def job_of(options: argparse.Namespace, folder: Path, teacher: Path) -> Distillation:
    """The shipped run's settings, but for how long it is."""
    return Distillation(
        teacher=str(teacher),
        student=StudentSource(config={"num_hidden_layers": options.blocks}),
        family="smollm2-135m",
        variant="benchmark",
        data=str(folder / "text"),
        out=str(folder / "student"),
        steps=_WARM_STEPS + options.steps,
        batch=options.workers * options.micro_batch,
        micro_batch=options.micro_batch,
        precision=options.precision,
        heldout_rows=1,
        compile=options.compile and "auto",
        mesh=Mesh(data=options.workers),
        checkpoints=Checkpoints(every_steps=1000),
    )


def figures(work: Work, products: list[Product], tokens: int) -> dict[str, Any]:
    """What came of it; ``tokens`` are those of a step of one worker."""
    count, operations = work.job.mesh.workers, sum(product.operations for product in products)
    rates = [json.loads((work.run / f"rates-{rank}.json").read_text()) for rank in range(count)]
    steps = [line["tokens_per_s"] for line in lines(work.run) if line["kind"] == "step"][_WARM_STEPS:]
    limits = {name: count * tokens / max(rate[name] for rate in rates) for name in _TYPES}
    measured = median(steps)
    return {
        "workers": count,
        "threads_per_worker": max(1, len(os.sched_getaffinity(0)) // count),
        "tokens_per_pass": tokens,
        "precision": work.job.precision,
        "mflop_per_token": round(operations / tokens / 1e6, 1),
        "gflop_per_s": {name: round(limit * operations / tokens / 1e9, 1) for name, limit in limits.items()},
        "limit_tokens_per_s": {name: round(limit, 1) for name, limit in limits.items()},
        "tokens_per_s": measured,
        "tokens_per_s_best": max(steps),
        "limit_over_measured": round(limits[work.job.precision] / measured, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=home() / _TEACHER)
    parser.add_argument("--blocks", type=int, default=20, help="of the student")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=4, help="rows")
    parser.add_argument("--length", type=int, default=256, help="of a row, in tokens")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--precision", choices=tuple(_TYPES), default="bf16")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="blocks as transformers has them")
    parser.add_argument("--profile", action="store_true", help="show where the first worker's time went")
    options = parser.parse_args()
    os.environ |= KEEP_FREED_MEMORY  # for the workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = job_of(options, folder, options.teacher)
        make_text(folder / "text", options.teacher, job.batch, options.length)
        job.run.mkdir()
        student = initial_student(job, lambda line: None)
        work = Work(job=job, teacher=options.teacher, student=student, data=folder / "text", run=job.run)
        taught, learning = (AutoConfig.from_pretrained(path) for path in (options.teacher, student))
        products = step(taught, learning, options.micro_batch, options.length)
        multiprocessing.spawn(worker, (work, products, options.profile), nprocs=options.workers)
        found = figures(work, products, options.micro_batch * options.length)
    for key, value in found.items():
        print(f"{key}: {value}")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

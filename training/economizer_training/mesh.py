"""The workers' mesh and the model on it, through torch's own parallelism alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from economizer_compression.model_folder import PRUNABLE
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from economizer_training.distillation import Mesh
from economizer_training.errors import TrainingError

Tensor = Any

_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")
_DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def refuse_shapes(mesh: Mesh, name: str, config: Any) -> None:
    """Raises TrainingError for a model whose shapes the mesh does not divide; ``config`` is transformers'."""
    if mesh.workers > mesh.data and config.architectures[0] not in PRUNABLE:
        known = ", ".join(sorted(PRUNABLE))
        raise TrainingError(
            f"the {name} is a {config.architectures[0]}: only mesh.data may be above 1, but for {known}"
        )
    if mesh.tensor > 1:
        for key in _DIVIDED:
            if getattr(config, key) % mesh.tensor:
                told = f"mesh.tensor {mesh.tensor} does not divide the {name}'s {key}, {getattr(config, key)}"
                raise TrainingError(f"{told}: take a divisor, or mesh.shard in its place")
    if mesh.pipeline > config.num_hidden_layers:
        raise TrainingError(
            f"mesh.pipeline {mesh.pipeline} is more than the {name}'s {config.num_hidden_layers} blocks"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """This worker's place among all."""

    mesh: Mesh
    devices: DeviceMesh
    device: torch.device

    @classmethod
    def join(cls, mesh: Mesh, device: torch.device) -> Workers:
        """Takes the place that the process group gives; it must have as many processes as the mesh."""
        if dist.get_world_size() != mesh.workers:
            raise TrainingError(f"the mesh is for {mesh.workers} workers and there are {dist.get_world_size()}")
        shape = (mesh.pipeline, mesh.data, mesh.shard, mesh.tensor)
        devices = init_device_mesh(device.type, shape, mesh_dim_names=("pipeline", "data", "shard", "tensor"))
        devices["data", "shard"]._flatten("batches")
        return cls(mesh=mesh, devices=devices, device=device)

    @property
    def stage(self) -> int:
        """Which part of the pipeline this is."""
        return int(self.devices["pipeline"].get_local_rank())

    @property
    def is_last_stage(self) -> bool:
        """Whether this worker has the logits."""
        return self.stage == self.mesh.pipeline - 1

    @property
    def share(self) -> int:
        """Which share of a batch's rows is this worker's, of ``mesh.batches``."""
        return int(self.devices["batches"].get_local_rank())

    @property
    def speaks(self) -> bool:
        """Whether this worker's figures count: one of those that have the same logits of the same rows."""
        return self.is_last_stage and int(self.devices["tensor"].get_local_rank()) == 0

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes what all know."""
        return bool(dist.get_rank() == 0)

    def mine(self, rows: list[int]) -> list[int]:
        """This worker's share of the rows, as many as the others' are."""
        each = len(rows) // self.mesh.batches
        return rows[self.share * each : (self.share + 1) * each]

    def total(self, figures: list[float]) -> list[float]:
        """The figures summed over all workers, each of which must ask."""
        summed = torch.tensor(figures, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return [float(value) for value in summed]


def spread(model: Any, workers: Workers) -> Any:
    """The model as this worker holds it; what comes back is called in its place, and its parameters are the model's."""
    mesh, devices = workers.mesh, workers.devices
    if mesh.tensor > 1:
        inside = "causal." if isinstance(model, Stage) else ""
        plan = {f"{inside}model.layers.*.{name}": ColwiseParallel() for name in _COLUMNS}
        plan |= {f"{inside}model.layers.*.{name}": RowwiseParallel() for name in _ROWS}
        parallelize_module(model, devices["tensor"], plan)
    learns = any(parameter.requires_grad for parameter in model.parameters())
    if mesh.shard > 1 or (mesh.data > 1 and mesh.tensor > 1):
        over = devices["data", "shard"] if mesh.data > 1 else devices["shard"]
        for block in getattr(model, "causal", model).model.layers:
            if not isinstance(block, Elsewhere):
                fully_shard(block, mesh=over)
        return fully_shard(model, mesh=over)
    if mesh.data > 1 and learns:
        group = devices["data"].get_group()
        return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)
    return model


@contextmanager
def accumulating(model: Any, last: bool) -> Iterator[None]:
    """Gradients of all but the last micro batch stay on the worker."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


def clip(parameters: list[Any], largest: float, workers: Workers) -> float:
    """Scales the gradients so that their norm over all workers is at most ``largest``; returns what it was."""
    squares: dict[tuple[Any, Any] | None, Tensor] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        sharded = isinstance(gradient, DTensor)
        key = (gradient.device_mesh, gradient.placements) if sharded else None
        local = gradient.to_local() if sharded else gradient
        squares[key] = squares.get(key, torch.zeros((), device=workers.device)) + local.float().square().sum()
    total = torch.zeros((), device=workers.device)
    for key, square in squares.items():
        if key is not None:
            for dimension, placement in enumerate(key[1]):
                if not placement.is_replicate():
                    dist.all_reduce(square, group=key[0].get_group(dimension))
        total = total + square
    if workers.mesh.pipeline > 1:
        dist.all_reduce(total, group=workers.devices["pipeline"].get_group())
    norm = float(total.sqrt())
    if norm > largest:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(largest / norm)
    return norm


class Elsewhere(torch.nn.Module):
    """A block that another worker has. In its place, so that the others keep the names of their parameters."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


class Stage(torch.nn.Module):
    """A causal model's share of blocks: token ids or hidden states in, hidden states or logits out."""

    def __init__(self, causal: Any, workers: Workers) -> None:
        super().__init__()
        count, stages = len(causal.model.layers), workers.mesh.pipeline
        begin, end = (workers.stage + at for at in (0, 1))
        mine = range(count * begin // stages, count * end // stages)
        for index in range(count):
            if index not in mine:
                causal.model.layers[index] = Elsewhere()
        self.first, self.last = workers.stage == 0, workers.is_last_stage
        if not self.last:
            causal.model.norm, causal.lm_head = torch.nn.Identity(), None
        if not self.first:
            causal.model.embed_tokens = None
        self.causal = causal

    def forward(self, received: Tensor, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.causal.model.embed_tokens(received) if self.first else received
        hidden = self.causal.model(
            inputs_embeds=hidden, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return self.causal.lm_head(hidden).float() if self.last else hidden.float()


def pipeline(
    stage: Any, config: Any, workers: Workers, *, rows: int, length: int, micro: int, loss: Callable[..., Any]
) -> Any:
    """The schedule that runs a step; ``loss`` takes (logits, the numbers of the micro batch's rows)."""
    # What is sent on gets gradients back: the schedule reads that from these.
    hidden = torch.empty(rows // micro, length, config.hidden_size, device=workers.device, requires_grad=True)
    ids = torch.empty(rows // micro, length, dtype=torch.long, device=workers.device)
    logits = torch.empty(rows // micro, length, config.vocab_size, device=workers.device, requires_grad=True)
    placed = PipelineStage(
        stage,
        workers.stage,
        workers.mesh.pipeline,
        workers.device,
        input_args=(ids if workers.stage == 0 else hidden,),
        output_args=(logits if workers.is_last_stage else hidden,),
        group=workers.devices["pipeline"].get_group(),
    )
    return Schedule1F1B(placed, micro, loss_fn=loss, scale_grads=False)

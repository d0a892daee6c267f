"""Checkpoints of a distillation by torch.distributed.checkpoint: whole or absent, for any number of workers.

``step-00000100`` holds the weights that learn and the optimiser's state, by the names that they have in one process,
and ``state.json``. It has that name from the moment it is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import TypeAdapter, ValidationError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from economizer_training.errors import TrainingError

_PREFIX = "step-"
_LEARNT = StateDictOptions(ignore_frozen_params=True, strict=False, flatten_optimizer_state_dict=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What a checkpoint says of itself: steps done, and the held-out KL, None where it was saved without a score."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic's

    step: int
    heldout_kl: float | None


def save(folder: Path, state: State, model: Any, optimizer: Any, *, keep_last: int) -> None:
    """Saves what all workers hold, each its part, and removes what is no longer kept.

    All workers call it. A killed one leaves a ``.partial`` folder, which the next save removes. Raises TrainingError
    where it cannot be written; what was written is removed.
    """
    whole = folder / f"{_PREFIX}{state.step:08d}"
    partial = whole.with_name(f"{whole.name}.partial")
    first = dist.get_rank() == 0
    if first:
        for left in folder.glob(f"{_PREFIX}*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(whole, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    try:
        dcp.save(_parts(model, optimizer), checkpoint_id=partial)
        if first:
            (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
            partial.rename(whole)
            for old in _surplus(folder, keep_last):
                shutil.rmtree(old)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"the checkpoint {whole} cannot be written: {_told(error)}") from None
    dist.barrier()


def load(checkpoint: Path, model: Any, optimizer: Any) -> State:
    """Puts a checkpoint into model and optimiser, on however many workers; all of them call it."""
    # Of the optimiser its moments alone: how it steps is for this run, and this mesh, to say.
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    parts = _parts(model, optimizer)
    try:
        dcp.load(parts, checkpoint_id=checkpoint)
    except (OSError, CheckpointException) as error:
        raise TrainingError(f"the checkpoint {checkpoint} cannot be read: {_told(error)}") from None
    set_model_state_dict(model, parts["model"], options=_LEARNT)
    set_optimizer_state_dict(model, optimizer, parts["optimizer"], options=_LEARNT)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    return _state(checkpoint)


def load_weights(checkpoint: Path, model: Any) -> None:
    """Puts a checkpoint's weights into a whole model, in a process of its own without workers."""
    parts = {"model": _weights(model)}
    try:
        dcp.load(parts, checkpoint_id=checkpoint, no_dist=True)
    except (OSError, CheckpointException) as error:
        raise TrainingError(f"the checkpoint {checkpoint} cannot be read: {_told(error)}") from None
    set_model_state_dict(model, parts["model"], options=_LEARNT)


def last(folder: Path) -> tuple[Path, State] | None:
    """The newest whole checkpoint."""
    found = _whole(folder)
    return found[-1] if found else None


def best(folder: Path) -> tuple[Path, State] | None:
    """The whole checkpoint of the least held-out KL, the later of two."""
    scored = [(one[1].heldout_kl, -one[1].step, one) for one in _whole(folder) if one[1].heldout_kl is not None]
    return min(scored)[2] if scored else None


def _parts(model: Any, optimizer: Any) -> dict[str, Any]:
    return {
        "model": _weights(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_LEARNT),
    }


def _weights(model: Any) -> dict[str, Any]:
    """The weights that learn, by the names that they have in one process."""
    # torch leaves out a frozen weight by its first name alone: a head that shares the embeddings' would stay, which a
    # pipeline's last stage has without the embeddings.
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = get_model_state_dict(model, options=_LEARNT)
    return {name: weight for name, weight in found.items() if name in learns}


def _whole(folder: Path) -> list[tuple[Path, State]]:
    paths = (path for path in sorted(folder.glob(f"{_PREFIX}*")) if path.suffix != ".partial")
    return [(path, _state(path)) for path in paths]


def _state(checkpoint: Path) -> State:
    try:
        return TypeAdapter(State).validate_json((checkpoint / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise TrainingError(
            f"{checkpoint} is damaged: {_told(error)}: remove it to go on from the one before"
        ) from None


def _surplus(folder: Path, keep_last: int) -> list[Path]:
    found = _whole(folder)
    kept = {path for path, _ in found[-keep_last:]}
    if (least := best(folder)) is not None:
        kept.add(least[0])
    return [path for path, _ in found if path not in kept]


def _told(error: Exception) -> str:
    """An error in a line. A CheckpointException's cause is that of the first worker that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        (failure, _), *_ = error.failures.values()
        return f"{type(failure).__name__}: {failure}"
    return " ".join(str(error).split())[:300]

"""Multiple choice through lm-eval: which choice a loaded model finds most probable, item by item.

lm-eval and its datasets are imported here alone, and told to stay off the network.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from economizer_compression.errors import CompressionError
from economizer_compression.manifests import digest_file
from economizer_compression.suite import ChoiceSlice
from economizer_compression.texts import located

_ITEMS_AT_ONCE = 16
_BATCH = 4  # lm-eval holds the log probabilities of all a batch's tokens, in single precision

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceItem:
    """One question with its choices as text, the index of the most probable choice, and whether that is right."""

    text: str
    chosen: int
    correct: bool


def run_task(
    model: Any, tokenizer: Any, task: ChoiceSlice, *, data: Path | None, cache: Path, advance: Callable[[], None]
) -> list[ChoiceItem]:
    """``task.items`` items, evenly over all that there are, in their order; ``advance`` is called after each.

    The choice is the one of the highest log-likelihood, not divided by its length (lm-eval's ``acc``). Raises
    CompressionError for a task that is missing, that needs the network, or that is no multiple choice.
    """
    from lm_eval.models.huggingface import HFLM

    with _offline_and_quiet():
        with redirect_stderr(io.StringIO()):  # progress bars that cannot be turned off
            loaded = _load(task, data, cache)
            chosen = spread(range(len(loaded.eval_docs)), task.items, f"slice {task.slice}: its task")
            loaded.build_all_requests(samples=chosen, rank=0, world_size=1)
        if loaded.OUTPUT_TYPE != "multiple_choice":
            raise CompressionError(f"slice {task.slice}: output_type {loaded.OUTPUT_TYPE}: must be multiple_choice")
        items: dict[int, list[Any]] = {}
        for instance in loaded.instances:
            items.setdefault(instance.doc_id, []).append(instance)
        scorer = HFLM(
            pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=_BATCH, softmax_dtype="float32"
        )
        return list(_items(scorer, loaded, list(items.values()), task.slice, advance))


def spread(all_items: Sequence[T], count: int, what: str) -> list[T]:
    """``count`` items evenly over all, which are often sorted by subject; raises CompressionError for too few."""
    if len(all_items) < count:
        raise CompressionError(f"{what} has {len(all_items)} items and {count} are wanted: lower its `items`")
    return [all_items[index * len(all_items) // count] for index in range(count)]


def data_digests(task: ChoiceSlice, data: Path | None) -> dict[str, str]:
    """SHA-256 of the local files that a task reads; raises CompressionError for one that is missing."""
    config = _config(task, data)
    paths = _leaves((config.get("dataset_kwargs") or {}).get("data_files")) if isinstance(config, Mapping) else []
    digests = {path: digest_file(Path(path)).sha256 for path in paths}
    if isinstance(task.choices, str) and isinstance(config, Mapping):
        digests[task.choices] = digest_file(located(task.choices, data, f"slice {task.slice}")).sha256
    return digests


def _items(
    scorer: Any, task: Any, items: list[list[Any]], slice_name: str, advance: Callable[[], None]
) -> Iterator[ChoiceItem]:
    """Some items at a time: both models see the same batches, so that a model has no difference from itself."""
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        some = items[start : start + _ITEMS_AT_ONCE]
        made = iter(scorer.loglikelihood([instance for item in some for instance in item], disable_tqdm=True))
        for item in some:
            results = [next(made) for _ in item]
            likelihoods = [likelihood for likelihood, _ in results][: len(task.doc_to_choice(item[0].doc))]
            if not all(map(math.isfinite, likelihoods)):
                raise CompressionError(
                    f"slice {slice_name}: the model's logits are not finite: its weights are damaged or overflow in "
                    "bfloat16"
                )
            measured = task.process_results(item[0].doc, results)
            if "acc" not in measured:
                raise CompressionError(f"slice {slice_name}: metric_list: must have acc")
            yield ChoiceItem(
                text="\n".join(dict.fromkeys(part for instance in item for part in instance.args)),
                chosen=max(range(len(likelihoods)), key=likelihoods.__getitem__),
                correct=bool(measured["acc"]),
            )
            advance()


def _load(task: ChoiceSlice, data: Path | None, cache: Path) -> Any:
    from lm_eval.tasks import TaskManager

    config = _config(task, data)
    named = isinstance(config, str)
    if not isinstance(config, str):
        kwargs = dict(config.get("dataset_kwargs") or {})
        config = {"task": task.slice, **config, "dataset_kwargs": {"cache_dir": str(cache), **kwargs}}
    try:
        loaded = TaskManager(include_defaults=named).load(config)["tasks"]
    except Exception as error:  # noqa: BLE001  # datasets, jinja and lm-eval raise what they like
        hint = " (its data must already be in the cache of Hugging Face datasets)" if named else ""
        raise CompressionError(
            f"slice {task.slice}: lm-eval cannot load its task{hint}: {type(error).__name__}"
            f": {' '.join(str(error).split())[:300]}"
        ) from None
    if len(loaded) != 1:
        raise CompressionError(f"slice {task.slice}: {task.choices} is a group of {len(loaded)} tasks: name one")
    return next(iter(loaded.values()))


def _config(task: ChoiceSlice, data: Path | None) -> Mapping[str, Any] | str:
    """The task's settings with absolute paths, or its name where lm-eval is to know it."""
    if isinstance(task.choices, Mapping):
        config = task.choices
    elif task.choices.endswith((".yaml", ".yml")):
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(located(task.choices, data, f"slice {task.slice}"))
    else:
        return task.choices
    kwargs = dict(config.get("dataset_kwargs") or {})
    if "data_files" in kwargs:
        kwargs["data_files"] = _absolute(kwargs["data_files"], data, task.slice)
    return {**config, "dataset_kwargs": kwargs}


def _absolute(entry: Any, data: Path | None, slice_name: str) -> Any:
    if isinstance(entry, Mapping):
        return {key: _absolute(value, data, slice_name) for key, value in entry.items()}
    if isinstance(entry, list):
        return [_absolute(value, data, slice_name) for value in entry]
    return str(located(str(entry), data, f"slice {slice_name}").resolve())


def _leaves(entry: Any) -> list[str]:
    if isinstance(entry, Mapping):
        return [leaf for value in entry.values() for leaf in _leaves(value)]
    if isinstance(entry, list):
        return [leaf for value in entry for leaf in _leaves(value)]
    return [] if entry is None else [str(entry)]


@contextmanager
def _offline_and_quiet() -> Iterator[None]:
    """No request leaves the machine, and what lm-eval logs, items' text among it, is not shown."""
    import datasets.config

    logger = logging.getLogger("lm_eval")
    modules = (datasets.config, datasets.config.constants)  # the second is huggingface_hub's
    before = logger.level, [module.HF_HUB_OFFLINE for module in modules]
    logger.setLevel(logging.ERROR)
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logger.setLevel(before[0])
        for module, offline in zip(modules, before[1], strict=True):
            module.HF_HUB_OFFLINE = offline

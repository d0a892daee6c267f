"""The import rule of the design: rooms import only from rooms before them, and pure rooms only what is pure."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

# A room imports from earlier lines only; rooms on one line never import each other.
ROOMS = (
    {"errors"},
    {"variants", "energy"},
    {"router"},
    {"admission"},
    {"ledger"},
    {"autoscaling"},
    {"engine"},
    {"yaml_files"},
    {"published"},
    {"config"},
    {"gateway", "simulator"},
    {"local"},
    {"cli"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}

PURE = (
    "errors.py",
    "variants/*.py",
    "router/*.py",
    "admission/queue*.py",
    "admission/buckets.py",
    "admission/limits.py",
    "admission/tenants.py",
    "energy/attribution.py",
    "energy/step_model.py",
    "energy/types.py",
    "ledger/bill.py",
    "ledger/bill_forms.py",
    "ledger/books.py",
    "ledger/counterfactual.py",
    "ledger/gateways.py",
    "ledger/openai_shapes.py",
    "ledger/price_map.py",
    "ledger/savings.py",
    "ledger/settling.py",
    "ledger/splitting.py",
    "ledger/types.py",
    "ledger/unclaimed.py",
    "ledger/when.py",
    "autoscaling/planner.py",
    "simulator/*.py",
)
IMPURE = frozenset(
    {"ray", "vllm", "torch", "fastapi", "aiohttp", "httpx", "prometheus_client", "pynvml"}
    | {"asyncio", "time", "random", "os", "logging"}
)


def imported(source: str) -> set[str]:
    """The full names of all that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide where a name comes from"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(dotted: str) -> str:
    """``router`` for ``economizer.router.types``."""
    return dotted.split(".")[1]


def out_of_order(file: str, source: str) -> list[str]:
    """What a file of economizer (``router/types.py``) imports from its own rank or a later one."""
    here = Path(file).parts[0].removesuffix(".py")
    theirs = sorted(name for name in imported(source) if name.startswith("economizer."))
    return [name for name in theirs if room(name) != here and RANK[room(name)] >= RANK[here]]


def impure(file: str, source: str) -> list[str]:
    """What a file of a pure room imports that waits, draws, measures or writes."""
    if not any(Path(file).match(pattern) and Path(file).parts[0] == Path(pattern).parts[0] for pattern in PURE):
        return []
    return sorted(name for name in imported(source) if name.split(".")[0] in IMPURE)


def ray_outside_its_adapters(file: str, source: str) -> list[str]:
    """What a file imports of ray without being one of its adapters."""
    if file.endswith("_ray.py") or file == "gateway/deployment.py":
        return []
    return sorted(name for name in imported(source) if name.split(".")[0] == "ray")


def of_economizer(source: str) -> list[str]:
    """What a job imports of economizer beside the manifest's types and the meters."""
    names = sorted(name for name in imported(source) if name.split(".")[0] == "economizer")
    return [name for name in names if len(name.split(".")) < 2 or room(name) not in {"variants", "energy"}]


def files(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((CHECKOUT / folder).rglob("*.py")):
        yield str(path.relative_to(CHECKOUT / folder)), path.read_text(encoding="utf-8")


ECONOMIZER = dict(files("serve/economizer"))
JOBS = dict([*files("compression"), *files("training")])


def test_every_file_is_in_a_known_room() -> None:
    assert "router/decide.py" in ECONOMIZER
    assert {Path(file).parts[0].removesuffix(".py") for file in ECONOMIZER} <= {*RANK, "__init__"}


@pytest.mark.parametrize("file", sorted(ECONOMIZER.keys() - {"__init__.py"}))
def test_a_file_imports_only_from_rooms_before_its_own(file: str) -> None:
    assert out_of_order(file, ECONOMIZER[file]) == []


@pytest.mark.parametrize("file", sorted(ECONOMIZER))
def test_a_pure_room_imports_nothing_that_acts(file: str) -> None:
    assert impure(file, ECONOMIZER[file]) == []


@pytest.mark.parametrize("file", sorted(ECONOMIZER))
def test_ray_is_imported_in_its_adapters_only(file: str) -> None:
    assert ray_outside_its_adapters(file, ECONOMIZER[file]) == []


@pytest.mark.parametrize("file", sorted(ECONOMIZER))
def test_the_gateway_imports_neither_compression_nor_training(file: str) -> None:
    jobs = {"economizer_compression", "economizer_training"}
    assert {name.split(".")[0] for name in imported(ECONOMIZER[file])} & jobs == set()


@pytest.mark.parametrize("file", sorted(JOBS))
def test_a_job_imports_of_economizer_only_the_variants_and_the_meters(file: str) -> None:
    assert of_economizer(JOBS[file]) == []


def test_no_folder_at_the_root_is_a_package() -> None:
    assert [path.name for path in CHECKOUT.iterdir() if (path / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("router/x.py", "from economizer.gateway.relay import Relay", ["economizer.gateway.relay.Relay"]),
        ("router/x.py", "from economizer import config", ["economizer.config"]),
        ("router/x.py", "import economizer.engine.run as run", ["economizer.engine.run"]),
        ("variants/x.py", "from economizer.energy.types import Joules", ["economizer.energy.types.Joules"]),
        ("gateway/x.py", "import economizer.simulator.report", ["economizer.simulator.report"]),
        ("simulator/x.py", "def f():\n    from economizer.gateway import app", ["economizer.gateway.app"]),
        ("config.py", "from economizer.cli import main", ["economizer.cli.main"]),
        ("cli.py", "from economizer.local import up\nfrom economizer.gateway import fleet", []),
        ("router/x.py", "from economizer.router.types import Terms\nfrom economizer.errors import NotReady", []),
    ],
)
def test_the_order_of_rooms_as_this_test_reads_it(file: str, source: str, found: list[str]) -> None:
    assert out_of_order(file, source) == found


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("router/x.py", "import time", ["time"]),
        ("router/deep/x.py", "import math", []),
        ("simulator/x.py", "def f():\n    from os import path", ["os.path"]),
        ("variants/x.py", "import aiohttp.web as web", ["aiohttp.web"]),
        ("autoscaling/planner.py", "from random import random", ["random.random"]),
        ("autoscaling/policy_ray.py", "import ray", []),
        ("admission/queues.py", "import asyncio", ["asyncio"]),
        ("gateway/router/x.py", "import time", []),
        ("router/x.py", "import timeit", []),
    ],
)
def test_what_is_impure_as_this_test_reads_it(file: str, source: str, found: list[str]) -> None:
    assert impure(file, source) == found


def test_adapters_as_this_test_reads_them() -> None:
    source = "from ray.serve import run"
    assert ray_outside_its_adapters("gateway/app.py", source) == ["ray.serve.run"]
    assert ray_outside_its_adapters("gateway/replicas_ray.py", source) == []
    assert ray_outside_its_adapters("gateway/deployment.py", source) == []
    assert of_economizer("import economizer\nfrom economizer.config import load") == [
        "economizer",
        "economizer.config.load",
    ]
    assert of_economizer("from economizer.variants.types import Variant\nimport economizer_compression.int8") == []

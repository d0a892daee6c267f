"""Compiled blocks learn what blocks as they are do; where nothing compiles, it is said, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from economizer_training.compiling import whether_to_compile
from economizer_training.distillation import Loss, Mesh
from economizer_training.record import lines, scores

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiling")
    tiny.make_model(folder / "teacher", blocks=3)
    tiny.make_model(folder / "student", blocks=2, seed=1)
    tiny.make_data(folder / "data", folder / "teacher")
    return folder


def said_without_a_compiler(folder: Path, wanted: str) -> list[str]:
    """What a run says on a machine that has none: torch looks for one when it is imported, so in another process."""
    given = {
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, str(folder), wanted], env={**os.environ, **given}, capture_output=True, text=True
    )
    return ended.stdout.splitlines()


_RUN = """
import sys, pathlib, tiny
from economizer_training.distillation import Mesh
folder, compile = pathlib.Path(sys.argv[1]), {"auto": "auto", "true": True}[sys.argv[2]]
job = tiny.settings(folder, compile=compile, out=str(folder / f"without-{compile}"))
print("\\n".join(tiny.run(tiny.work_of(job, folder, folder / "student"), Mesh())))
"""


def figures(folder: Path, name: str, **changed: object) -> list[float]:
    job = tiny.settings(folder, out=str(folder / name), **changed)
    work = tiny.work_of(job, folder, folder / "student")
    said = tiny.run(work, job.mesh)
    assert not [line for line in said if "Traceback" in line], "\n".join(said)
    losses = [line["loss"] for line in lines(work.run) if line["kind"] == "step"]
    return losses + [score["kl"] for score in scores(work.run)]


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2), Mesh(shard=2)], ids=["one", "DDP", "FSDP2"])
def test_compiled_blocks_give_the_same_losses(folder: Path, mesh: Mesh) -> None:
    name = f"{mesh.data}-{mesh.shard}"
    plain = figures(folder, f"plain-{name}", mesh=mesh)
    assert figures(folder, f"compiled-{name}", mesh=mesh, compile="auto") == pytest.approx(plain, rel=1e-4)


def test_without_a_compiler_auto_says_why_it_is_slower_and_learns(folder: Path) -> None:
    said = said_without_a_compiler(folder, "auto")
    assert [line for line in said if line.startswith("not compiled, which is slower: ") and "no-such-compiler" in line]
    assert [line for line in said if line.startswith("step 6: held-out KL")]


def test_without_a_compiler_a_run_that_must_compile_is_refused(folder: Path) -> None:
    told = "TrainingError: compile: true: torch cannot compile here, set it to auto or false: "
    assert [line for line in said_without_a_compiler(folder, "true") if told in line]


UNSUITED = {
    "tensor": {"mesh": Mesh(tensor=2)},
    "pipeline": {"mesh": Mesh(pipeline=2)},
    "own": {"loss": Loss(on_policy=0.5)},
}


@pytest.mark.parametrize("name", UNSUITED)
def test_where_blocks_are_not_whole_or_rows_not_of_one_length_nothing_is_compiled(folder: Path, name: str) -> None:
    said: list[str] = []
    assert not whether_to_compile(tiny.settings(folder, compile="auto", **UNSUITED[name]), CPU, said.append)
    assert not said
    with pytest.raises(ValueError, match="compile is True: must be auto or false"):
        tiny.settings(folder, compile=True, **UNSUITED[name])

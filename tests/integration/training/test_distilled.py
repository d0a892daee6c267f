"""The way of `make distill` on a tiny model: text, a student, its INT8 variant, both measured and published."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compress import compress
from economizer_compression.manifests import digest_of, read_manifest

ROOT = Path(__file__).parents[3]
BIN = ROOT / ".venvs" / "compression" / "bin"
TOKENIZER = ROOT / ".economizer" / "models" / "smollm2-135m-instruct"
METER = {"kind": "cpu", "watts_per_core": 4.0, "watts_per_core_idle": 1.0}


def write(file: Path, content: Any) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file


def run(*words: object) -> None:
    done = subprocess.run(
        [*map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT / "tests" / "integration" / "compression",
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's file; the student lies where `build` looks for it."""
    folder = tmp_path_factory.mktemp("distilled")
    model, text, made = folder / "model", folder / "text", folder / "made"
    make_tiny = "import pathlib, sys; from every_recipe import make_tiny; make_tiny(*map(pathlib.Path, sys.argv[1:]))"
    run(BIN / "python", "-c", make_tiny, model, TOKENIZER)
    sources = [{"name": "manual", "files": "builtin:documents", "rules": False}]
    packing = {"tokens": 64, "shards": 1, "held_out": 0.1}
    preparation = {"tokenizer": str(model), "sources": sources, "packing": packing, "meter": METER}
    run(BIN / "economizer-train", "prepare", write(folder / "prepare.yaml", preparation), "--out", text)
    suite = {
        "name": "short",
        "calibration": [{"text": "builtin:documents"}],
        "evaluation": [{"slice": "documents", "text": "builtin:documents", "tokens": 256, "window": 64}],
    }
    distillation = {
        "teacher": str(model),
        "student": {
            "steps": [{"depth_prune": {"keep": 0.6}}],
            "calibration": {"samples": 2, "tokens": 32},
            "suite": str(write(folder / "suite.yaml", suite)),
        },
        **{"family": "tiny", "variant": "student", "data": str(text), "out": str(made / "student")},
        **{"steps": 4, "micro_batch": 1, "heldout_rows": 4, "mesh": {"data": 2}, "meter": METER},
    }
    run(BIN / "economizer-train", "distill", write(folder / "distill.yaml", distillation))
    engine = yaml.safe_load((ROOT / "compression" / "engines" / "vllm-cpu.yaml").read_text())
    engine |= {"rounds": 1, "batches": [1], "meter": METER, "args": ["--max-model-len=512", "--enforce-eager"]}
    content = {
        **{"family": "tiny", "model": str(model), "full": "full", "suite": str(folder / "suite.yaml")},
        "engine": str(write(folder / "engine.yaml", engine)),
        "variants": {"student": None, "student-int8": {"recipe": "int8-rtn", "of": "student"}},
    }
    return write(folder / "family.yaml", content)


def build(family: Path, code: int = 0) -> str:
    return compress("build", family, "--out", family.parent / "made", "--store", family.parent / "store", code=code)


@pytest.fixture(scope="module")
def said(family: Path) -> str:
    return build(family)


def test_the_student_and_its_rounded_self_are_measured_judged_and_in_the_catalogue(family: Path, said: str) -> None:
    made = family.parent / "made"
    student, rounded = (read_manifest(made / name) for name in ("student", "student-int8"))
    assert student.making is not None
    assert [step.name for step in student.making.steps] == ["depth_prune", "distil"]
    assert rounded.origin.name == "tiny@student"
    assert rounded.origin.sha256 == digest_of(student.files)
    for manifest in (student, rounded):
        assert manifest.evaluation is not None
        assert manifest.engine is not None
        assert manifest.verdict is not None
    catalogue = yaml.safe_load((family.parent / "store" / "catalogue.yaml").read_text())
    variants = catalogue["families"]["tiny"]["variants"]
    assert sorted(variants) == ["full", "student", "student-int8"]
    assert variants["student"]["routed"] is student.verdict.promoted  # type: ignore[union-attr]
    assert "tiny: built in " in said


def test_a_build_that_is_done_makes_scores_and_measures_nothing_again(family: Path, said: str) -> None:
    before = [read_manifest(family.parent / "made" / name) for name in ("student", "student-int8")]
    again = build(family)
    assert [read_manifest(family.parent / "made" / name) for name in ("student", "student-int8")] == before
    assert "made and scored" not in again
    assert "measuring" not in again


def test_what_was_rounded_from_another_student_is_not_taken_for_this_ones(family: Path, said: str) -> None:
    made = family.parent / "made"
    (made / "student").rename(made / "kept")
    try:
        assert f"there is no {made / 'student'}, which no recipe makes" in build(family, code=1)
        words = ("--out", made / "student", "--family", "tiny", "--suite", family.parent / "suite.yaml")
        compress("run", "width-prune", "--model", made / "full", *words)
        assert f"{made / 'student-int8'} was made from another model than student" in build(family, code=1)
    finally:
        if (made / "student").exists():
            (made / "student").rename(made / "other")
        (made / "kept").rename(made / "student")

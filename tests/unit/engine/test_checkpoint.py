"""A checkpoint is held against its manifest before an engine loads it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from economizer.engine.checkpoint import Checkpoint
from economizer.errors import CheckpointDamaged

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "more/model-2.safetensors": b"others"}


def digest(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, with a file that its manifest does not name."""
    (tmp_path / "more").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("a card")
    manifest = {"format": 1, "files": {name: digest(content) for name, content in FILES.items()}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


async def problem(checkpoint: Checkpoint) -> str | None:
    """What is wrong with it, in words."""
    try:
        await checkpoint.check("m@int8")
    except CheckpointDamaged as damaged:
        return damaged.message
    return None


async def test_a_whole_checkpoint_passes(folder: Path) -> None:
    assert await problem(Checkpoint(str(folder))) is None


@pytest.mark.parametrize(
    ("file", "content", "wrong"),
    [
        ("model.safetensors", b"weightx" * 1000, "model.safetensors has another content than its manifest says"),
        ("model.safetensors", b"weights" * 999, "model.safetensors has 6993 bytes and not the 7000 of its manifest"),
        ("more/model-2.safetensors", None, "more/model-2.safetensors is missing"),
    ],
)
async def test_a_damaged_file_is_named_with_what_to_do(
    file: str, content: bytes | None, wrong: str, folder: Path
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assert await problem(Checkpoint(str(folder))) == (
        f"The checkpoint of m@int8 in {folder} is damaged: {wrong}. It is not served; `economizer-compress publish` "
        "it again."
    )


async def test_of_many_damaged_files_the_first_are_named(folder: Path) -> None:
    files = {f"{number}.safetensors": digest(b"") for number in range(9)}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    found = await problem(Checkpoint(str(folder)))
    assert found is not None
    assert "0.safetensors is missing, 1.safetensors is missing" in found
    assert "4.safetensors is missing, and 4 files more." in found


@pytest.mark.parametrize("model", ["", "org/model", "/no/such/folder"])
async def test_what_is_no_local_folder_is_not_checked(model: str) -> None:
    assert await problem(Checkpoint(model)) is None


@pytest.mark.parametrize("text", [None, "{}", '{"version": 2}'])
async def test_a_folder_without_such_a_manifest_is_not_checked(text: str | None, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    assert await problem(Checkpoint(str(folder))) is None


@pytest.mark.parametrize(
    "text", ["", '{"files": ', "[]", "3", '{"files": []}', '{"files": {"a": {}}}', '{"files": {"a": {"sha256": 1}}}']
)
async def test_a_damaged_manifest_is_named_itself(text: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(text)
    found = await problem(Checkpoint(str(folder)))
    assert found is not None
    assert "is damaged: manifest.json is no manifest that this release reads." in found


async def test_what_was_right_is_read_again_only_when_it_has_changed(folder: Path) -> None:
    checkpoint = Checkpoint(str(folder))
    assert await problem(checkpoint) is None
    weights = folder / "model.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    weights.write_bytes(b"weightx" * 1000)
    os.utime(weights, ns=times)
    assert await problem(checkpoint) is None  # by size and time it is the file that was right
    assert await problem(Checkpoint(str(folder))) is not None
    os.utime(weights, ns=(times[0], times[1] + 1))
    assert await problem(checkpoint) is not None
    assert await problem(checkpoint) is not None  # what is wrong is not remembered as right
    weights.write_bytes(FILES["model.safetensors"])
    assert await problem(checkpoint) is None

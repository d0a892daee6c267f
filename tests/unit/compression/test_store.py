"""The store on a real disk and in memory; the library `safetensors` reads what it wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from checkpoints import FULL, INT8, Raw, checkpoint, manifest_of, safetensors
from economizer_compression.errors import CompressionError
from economizer_compression.manifests import damaged_files, digest_file, read_manifest
from economizer_compression.records import Record, blob_path
from economizer_compression.storage import storage_at
from economizer_compression.store import Published, Store
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

KEYS = {("tiny", "full"), ("tiny", "int8")}
LARGE, LIMIT = 8 << 20, 2 << 20


def published(tmp: Path, tensors: Mapping[str, Raw] = FULL, *, variant: str = "full") -> Published:
    """A checkpoint published into the store at `tmp / "store"`."""
    folder = tmp / f"made-{variant}"
    return Store(str(tmp / "store")).publish(folder, checkpoint(folder, tensors, variant=variant))


def view_of(publication: Published) -> Path:
    assert publication.view is not None
    return publication.view


def tensors_in(folder: Path) -> dict[str, Raw]:
    """All tensors of a folder as the library reads them."""
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    }


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def blobs(record: Record) -> set[str]:
    return set(record.blobs)


def store_files(tmp: Path) -> set[str]:
    return files_below(tmp / "store") - {".lock"}


def test_a_view_holds_one_file_per_module_and_an_index_that_leads_to_each_tensor(tmp_path: Path) -> None:
    view = view_of(published(tmp_path, INT8, variant="int8"))
    assert files_below(view) == {
        "config.json",
        "lm_head.safetensors",
        "manifest.json",
        "model.layers.0.mlp.down_proj.safetensors",
        "model.norm.safetensors",
        "model.safetensors.index.json",
    }
    assert json.loads((view / "model.safetensors.index.json").read_bytes()) == {
        "metadata": {"total_size": 24},
        "weight_map": {
            "lm_head.weight": "lm_head.safetensors",
            "model.layers.0.mlp.down_proj.weight": "model.layers.0.mlp.down_proj.safetensors",
            "model.layers.0.mlp.down_proj.weight_scale": "model.layers.0.mlp.down_proj.safetensors",
            "model.norm.weight": "model.norm.safetensors",
        },
    }
    assert tensors_in(view) == INT8


def test_the_published_manifest_describes_the_files_of_the_view(tmp_path: Path) -> None:
    publication = published(tmp_path)
    view = view_of(publication)
    manifest = read_manifest(view)
    assert manifest == publication.record.manifest
    assert set(manifest.files) == files_below(view) - {"manifest.json"}
    assert damaged_files(view, manifest) == []


def test_a_tensor_that_two_variants_share_is_stored_once(tmp_path: Path) -> None:
    full = published(tmp_path).record
    second = published(tmp_path, INT8, variant="int8")
    shared = {blob_path(name, full.files[name]) for name in ("lm_head.safetensors", "model.norm.safetensors")}
    shared |= {blob_path("config.json", full.files["config.json"])}
    assert blobs(full) & blobs(second.record) == shared
    assert second.shared_bytes == sum(second.record.blobs[path].size_bytes for path in shared)
    usage = Store(str(tmp_path / "store")).usage()
    assert usage.variant_bytes == {("tiny", "full"): full.size_bytes, ("tiny", "int8"): second.record.size_bytes}
    assert usage.copies_bytes == full.size_bytes + second.record.size_bytes
    assert usage.stored_bytes == usage.copies_bytes - second.shared_bytes


def test_a_view_takes_no_room_of_its_own_and_cannot_be_written_to(tmp_path: Path) -> None:
    publication = published(tmp_path)
    view = view_of(publication)
    for name, file in publication.record.files.items():
        assert (view / name).samefile(tmp_path / "store" / blob_path(name, file))
        assert (view / name).stat().st_mode & 0o777 == 0o444


def test_the_order_of_tensors_and_shards_in_a_checkpoint_changes_no_weight_blob(tmp_path: Path) -> None:
    first = published(tmp_path).record
    folder = tmp_path / "sharded"
    checkpoint(folder)
    (folder / "model.safetensors").unlink()
    parts = {"model-1-of-2.safetensors": ["model.norm.weight"], "model-2-of-2.safetensors": sorted(FULL)[:2][::-1]}
    for file, names in parts.items():
        (folder / file).write_bytes(safetensors({name: FULL[name] for name in names}))
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    second = Store(str(tmp_path / "store")).publish(folder, manifest_of(folder)).record
    assert second == first


def test_publishing_a_view_again_changes_nothing(tmp_path: Path) -> None:
    first = published(tmp_path)
    view = view_of(first)
    before = store_files(tmp_path)
    again = Store(str(tmp_path / "store")).publish(view, read_manifest(view))
    assert (again.record, again.view, again.written_bytes) == (first.record, view, 0)
    assert store_files(tmp_path) == before


RAW = st.sampled_from(
    [("BF16", 2), ("F8_E4M3", 1), ("I8", 1), ("I32", 4), ("F32", 4), ("BOOL", 1), ("F64", 8)]
).flatmap(
    lambda dtype: st.integers(0, 5).flatmap(
        lambda n: st.binary(min_size=n * dtype[1], max_size=n * dtype[1]).map(lambda data: (dtype[0], (n,), data))
    )
)
NAMES = st.lists(st.sampled_from(["model", "layers", "0", "weight", "scale", "ä"]), min_size=1, max_size=4).map(
    ".".join
)


@given(tensors=st.dictionaries(NAMES, RAW, min_size=1))
def test_splitting_loses_and_changes_no_tensor(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Raw]
) -> None:
    tmp = tmp_path_factory.mktemp("split")
    view = view_of(published(tmp, tensors))
    assert tensors_in(view) == tensors
    assert not (view / "model.safetensors").exists()


def test_an_adapter_beside_the_weights_keeps_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    adapter = safetensors({"lora_a.weight": ("F32", (1,), b"lora")})
    manifest = checkpoint(folder, files={"adapter_model.safetensors": adapter})
    view = view_of(Store(str(tmp_path / "store")).publish(folder, manifest))
    assert (view / "adapter_model.safetensors").read_bytes() == adapter


def test_a_card_is_published_with_the_checkpoint_and_is_no_part_of_its_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    manifest = checkpoint(folder)
    (folder / "README.md").write_text("what it is")
    publication = Store(str(tmp_path / "store")).publish(folder, manifest)
    assert (view_of(publication) / "README.md").read_text() == "what it is"
    assert "README.md" not in publication.record.manifest.files


def test_a_folder_that_its_manifest_does_not_describe_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    manifest = checkpoint(folder)
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel____"]}')
    with pytest.raises(CompressionError, match=r"config\.json has"):
        Store(str(tmp_path / "store")).publish(folder, manifest)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"short", "its 5 bytes end before its header does"),
        (b"\xff" * 16, "its 16 bytes end before its header does"),
        ((2).to_bytes(8, "little") + b"[]", "its header cannot be read"),
        (safetensors(FULL) + b"more", "its header describes"),
        (safetensors(FULL)[:-1], "its header describes"),
    ],
)
def test_weights_that_are_no_safetensors_file_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    manifest = checkpoint(tmp_path / "made", files={"model.safetensors": content})
    with pytest.raises(CompressionError, match=why):
        Store(str(tmp_path / "store")).publish(tmp_path / "made", manifest)


@pytest.mark.parametrize("variant", ["../up", "a/b", "", ".hidden"])
def test_a_variant_whose_name_could_lead_elsewhere_is_refused(tmp_path: Path, variant: str) -> None:
    manifest = checkpoint(tmp_path / "made", variant=variant)
    with pytest.raises(CompressionError, match="is no name of a family or variant"):
        Store(str(tmp_path / "store")).publish(tmp_path / "made", manifest)


# The last argument bounds a file: there the kernel kills the process (SIGXFSZ), or the write fails as on a full disk.
PUBLISH = """
import resource, signal, sys
from pathlib import Path
from economizer_compression.manifests import read_manifest
from economizer_compression.store import Store
store, folder, ending, limit = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if ending == "killed" else signal.SIG_IGN)
Store(store).publish(folder, read_manifest(folder))
"""


def publish_elsewhere(store: Path, folder: Path, ending: str = "well", limit: int = 0) -> tuple[int, str]:
    """Publishes in a process of its own; returns its exit code and what it said."""
    command = [sys.executable, "-c", PUBLISH, str(store), str(folder), ending, str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


def large(folder: Path) -> None:
    """A checkpoint one of whose tensors is larger than the limit."""
    checkpoint(folder, {**INT8, "model.embed.weight": ("I8", (LARGE,), os.urandom(LARGE))}, variant="int8")


def test_publishing_again_after_a_kill_goes_on(tmp_path: Path) -> None:
    before = published(tmp_path).record
    store, folder = tmp_path / "store", tmp_path / "large"
    large(folder)
    assert publish_elsewhere(store, folder, "killed", LIMIT) == (-signal.SIGXFSZ, "")
    (part,) = (path for path in (store / "partial").iterdir() if path.stat().st_size == LIMIT)
    assert (Store(str(store)).variants(), Store(str(store)).verify()) == ([before], [])
    finished = sum(path.stat().st_size for path in (store / "blobs").rglob("*") if path.is_file())

    publication = Store(str(store)).publish(folder, read_manifest(folder))
    assert publication.written_bytes + finished == Store(str(store)).usage().stored_bytes
    assert Store(str(store)).verify() == []

    assert Store(str(store)).unused(KEYS).leftovers == ()
    hours_ago = time.time() - 7200
    os.utime(part, (hours_ago, hours_ago))
    unused = Store(str(store)).unused(KEYS)
    assert (unused.leftovers, unused.size_bytes) == ((f"partial/{part.name}",), LIMIT)
    Store(str(store)).remove(unused)
    assert not part.exists()


def test_a_half_written_blob_is_never_served(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "large"
    large(folder)
    assert publish_elsewhere(store, folder, "killed", LIMIT)[0] == -signal.SIGXFSZ
    for blob in (path for path in (store / "blobs").rglob("*") if path.is_file()):
        assert digest_file(blob).sha256 == blob.name.removesuffix(".safetensors")
    assert not (store / "checkpoints").exists()
    with pytest.raises(CompressionError, match="does not hold tiny@int8; it holds nothing"):
        Store(str(store)).fetch("tiny", "int8", tmp_path / "out")


def test_a_full_disk_leaves_no_part_and_is_told(tmp_path: Path) -> None:
    before = published(tmp_path).record
    large(tmp_path / "large")
    code, said = publish_elsewhere(tmp_path / "store", tmp_path / "large", "full", LIMIT)
    assert (code, "CompressionError: there is no room left for" in said) == (1, True)
    assert list((tmp_path / "store" / "partial").iterdir()) == []
    assert Store(str(tmp_path / "store")).variants() == [before]
    assert Store(str(tmp_path / "store")).verify() == []


def test_publishing_over_a_variant_keeps_the_view_that_an_engine_may_serve_from(tmp_path: Path) -> None:
    old = published(tmp_path)
    new = published(tmp_path, INT8)
    store = Store(str(tmp_path / "store"))
    assert store.variants() == [new.record]
    assert tensors_in(view_of(old)) == FULL
    assert tensors_in(view_of(new)) == INT8

    serving = store.unused({("tiny", "full")}, serving=[view_of(old)])
    assert (serving.views, serving.blobs, serving.size_bytes) == ((), (), 0)
    unused = store.unused({("tiny", "full")})
    assert unused.views == (view_of(old).relative_to(tmp_path / "store").as_posix(),)
    assert set(unused.blobs) == blobs(old.record) - blobs(new.record)
    store.remove(unused)
    assert not view_of(old).exists()
    assert store.verify() == []


def test_what_no_catalogue_names_goes_and_what_a_kept_record_needs_stays(tmp_path: Path) -> None:
    full, int8 = published(tmp_path), published(tmp_path, INT8, variant="int8")
    store = Store(str(tmp_path / "store"))
    assert store.unused(KEYS).size_bytes == 0
    unused = store.unused({("tiny", "full")})
    assert unused.records == (int8.record,)
    assert set(unused.blobs) == blobs(int8.record) - blobs(full.record)
    assert unused.size_bytes == int8.written_bytes
    stored = store.usage().stored_bytes
    store.remove(unused)
    assert store.usage().stored_bytes == stored - unused.size_bytes
    assert (store.variants(), store.verify()) == ([full.record], [])
    assert not view_of(int8).exists()


def test_what_was_published_after_unused_was_asked_is_not_removed(tmp_path: Path) -> None:
    int8 = published(tmp_path, INT8, variant="int8")
    store = Store(str(tmp_path / "store"))
    unused = store.unused(set())
    again = checkpoint(tmp_path / "again", INT8, variant="other")
    other = store.publish(tmp_path / "again", again)
    store.remove(unused)
    assert (store.variants(), store.verify()) == ([other.record], [])
    assert not view_of(int8).exists()


def test_damage_is_found_and_publishing_again_repairs_it(tmp_path: Path) -> None:
    record = published(tmp_path).record
    store = tmp_path / "store"
    embedding, norm, layer = (
        blob_path(name, record.files[name])
        for name in ("lm_head.safetensors", "model.norm.safetensors", "model.layers.0.mlp.down_proj.safetensors")
    )
    norm_bytes = record.files["model.norm.safetensors"].size_bytes
    flipped, shorter, gone = store / embedding, store / norm, store / layer
    flipped.chmod(0o644)
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    shorter.unlink()
    shorter.write_bytes(b"half")
    gone.unlink()
    view = f"checkpoints/tiny/full-{record.digest[:12]}"
    assert set(Store(str(store)).verify()) == {
        f"tiny@full: {embedding} has other content than its name says",
        f"tiny@full: {norm} has 4 bytes instead of {norm_bytes}",
        f"tiny@full: {layer} is missing",
    }
    assert Store(str(store)).verify("another") == []
    published(tmp_path)
    assert Store(str(store)).verify() == []
    (store / view / "config.json").unlink()
    assert Store(str(store)).verify() == [f"tiny@full: {view}/config.json is missing"]


def test_two_who_publish_at_once_both_leave_whole_variants(tmp_path: Path) -> None:
    made = {}
    for variant, tensors in (("full", FULL), ("int8", INT8)):
        made[variant] = tmp_path / variant
        checkpoint(made[variant], tensors, variant=variant)
    ended: list[tuple[int, str]] = []
    threads = [
        Thread(target=lambda folder=folder: ended.append(publish_elsewhere(tmp_path / "store", folder)))
        for folder in made.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(str(tmp_path / "store"))
    assert ended == [(0, ""), (0, "")]
    assert ({record.key for record in store.variants()}, store.verify()) == (KEYS, [])


def remote(name: str) -> Store:
    return Store(f"memory://{name}/store")


def test_a_checkpoint_is_fetched_from_an_object_store_as_it_was_published(tmp_path: Path) -> None:
    store = remote("fetched")
    publication = store.publish(tmp_path / "made", checkpoint(tmp_path / "made", INT8, variant="int8"))
    assert publication.view is None
    assert store.view(publication.record) is None
    out = tmp_path / "out" / "int8"
    assert store.fetch("tiny", "int8", out) == publication.record.manifest == read_manifest(out)
    assert (damaged_files(out, read_manifest(out)), tensors_in(out)) == ([], INT8)
    assert store.verify() == []
    assert store.publish(tmp_path / "made", read_manifest(tmp_path / "made")).written_bytes == 0
    assert store.fetch("tiny", "int8", out) == publication.record.manifest  # a restarted machine may ask again
    (out / "config.json").unlink()
    with pytest.raises(CompressionError, match=r"exists and is not tiny@int8.*config\.json is missing"):
        store.fetch("tiny", "int8", out)


def test_a_damaged_blob_is_never_fetched(tmp_path: Path) -> None:
    store = remote("damaged")
    record = store.publish(tmp_path / "made", checkpoint(tmp_path / "made")).record
    path = blob_path("config.json", record.files["config.json"])
    storage_at(store.url).write(path, [b"?" * record.files["config.json"].size_bytes])
    with pytest.raises(CompressionError, match=r"config\.json of tiny@full, has other content"):
        store.fetch("tiny", "full", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert store.verify() == [f"tiny@full: {path} has other content than its name says"]


def test_a_young_blob_in_an_object_store_may_belong_to_a_record_to_come(tmp_path: Path) -> None:
    store = remote("young")
    record = store.publish(tmp_path / "made", checkpoint(tmp_path / "made")).record
    unused = store.unused(set())
    assert (unused.records, unused.blobs) == ((record,), ())
    store.remove(unused)
    assert store.variants() == []
    assert store.publish(tmp_path / "made", read_manifest(tmp_path / "made")).written_bytes == 0


def test_an_unknown_variant_is_refused_and_those_there_are_named(tmp_path: Path) -> None:
    published(tmp_path)
    with pytest.raises(CompressionError, match="does not hold tiny@int4; it holds variants/tiny/full"):
        Store(str(tmp_path / "store")).fetch("tiny", "int4", tmp_path / "out")


def test_a_place_that_nothing_can_open_is_refused() -> None:
    with pytest.raises(CompressionError, match="the store 'nowhere://x' cannot be opened"):
        Store("nowhere://x")


def test_a_record_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    record = published(tmp_path).record
    with pytest.raises(ValueError, match="must lie in the checkpoint's folder"):
        replace(record, files={**record.files, "../config.json": record.files["config.json"]})

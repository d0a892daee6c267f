"""A variant's last steps: the gate's verdict into its manifest, the checkpoint into store and catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from economizer.variants.manifest import Manifest, Verdict

from economizer_compression.beside_full import beside_full, energy_methods, methods_told
from economizer_compression.card import write_card
from economizer_compression.catalogue import catalogued, register
from economizer_compression.errors import CompressionError
from economizer_compression.gate import Margins, judge
from economizer_compression.manifests import damaged_files, read_manifest, write_manifest
from economizer_compression.store import Store


def served(store: Store, catalogue: Path | None, family: str) -> list[Manifest]:
    """The manifests of a family's variants that the router may choose: published, catalogued, and promoted."""
    records = [record.manifest for record in store.variants() if record.manifest.family == family]
    named = catalogued(catalogue) if catalogue is not None else {(m.family, m.variant) for m in records}
    return [m for m in records if (m.family, m.variant) in named and (m.full or (m.verdict and m.verdict.promoted))]


def promote(folder: Path, store: Store, catalogue: Path | None, margins: Margins) -> Verdict:
    """Judges the variant in a folder beside what is served, and writes the verdict into its manifest."""
    manifest = whole_manifest(folder)
    others = served(store, catalogue, manifest.family)
    if not manifest.full and not any(other.full for other in others):
        message = f"the full model of {manifest.family} is not published: `import --full` and `publish` it first"
        raise CompressionError(f"{folder}: {message}")
    verdict = judge(manifest, others, margins)
    write_manifest(folder, replace(manifest, verdict=verdict))
    return verdict


def publish(folders: Sequence[Path], store: Store, catalogue: Path | None) -> Iterator[str]:
    """Puts checkpoints into the store, and where the store is on this machine into the catalogue; yields what it did.

    Each gets its model card with the family's plot, which is why all of a family are best published together. Says so
    where joules in the family were measured in several ways: the router compares them.
    """
    manifests = [whole_manifest(folder) for folder in folders]
    known = {record.key: record.manifest for record in store.variants()}
    known |= {(manifest.family, manifest.variant): manifest for manifest in manifests}
    fulls = {family: manifest for (family, _), manifest in known.items() if manifest.full}
    for folder, manifest in zip(folders, manifests, strict=True):
        full = fulls.get(manifest.family)
        family = [beside_full(other, full) for key, other in known.items() if key[0] == manifest.family]
        write_card(folder, manifest, family)
        done = store.publish(folder, manifest)
        if catalogue is not None and done.view is not None:
            register(catalogue, [(beside_full(done.record.manifest, full), done.view)])
        yield (
            f"{done.record.id}: published, {done.written_bytes / 1e6:.1f} MB written, "
            f"{done.shared_bytes / 1e6:.1f} MB were there already"
        )
    families = {manifest.family for manifest in manifests}
    yield from methods_told(energy_methods(one for one in known.values() if one.family in families))


def whole_manifest(folder: Path) -> Manifest:
    """The manifest of a folder whose files are as they were written; raises CompressionError otherwise."""
    manifest = read_manifest(folder)
    if damage := damaged_files(folder, manifest):
        raise CompressionError(f"{folder} is damaged: {'; '.join(damage[:3])}: make it anew")
    return manifest

"""What ``economizer-compress list`` shows of a store."""

from __future__ import annotations

from typing import Any

from economizer.variants.manifest import Manifest

from economizer_compression.beside_full import energy_methods, methods_told
from economizer_compression.store import Store


def listing(store: Store) -> dict[str, Any]:
    """The variants with what was measured of them, None where it was not, and what the store takes in bytes."""
    usage, records = store.usage(), store.variants()
    return {
        "store": store.url,
        "stored_bytes": usage.stored_bytes,
        "copies_bytes": usage.copies_bytes,
        "variants": [{**row(record.manifest), "bytes": usage.variant_bytes[record.key]} for record in records],
        "energy_methods": energy_methods(record.manifest for record in records),
    }


def row(manifest: Manifest) -> dict[str, Any]:
    """One variant's line."""
    evaluation, engine, verdict = manifest.evaluation, manifest.engine, manifest.verdict
    batch = max(engine.decode_tokens_per_s) if engine else None
    joules = engine.decode_j_per_token if engine else None
    return {
        "name": f"{manifest.family}@{manifest.variant}",
        "state": "full" if manifest.full else "promoted" if verdict and verdict.promoted else "pinned only",
        "quality": evaluation.quality.value if evaluation else None,
        "quality_low": evaluation.quality.low if evaluation else None,
        "kl_mean": evaluation.kl_mean.value if evaluation and evaluation.kl_mean else None,
        "prefill_tokens_per_s": engine.prefill_tokens_per_s.value if engine else None,
        "decode_tokens_per_s": engine.decode_tokens_per_s[batch].value if engine and batch else None,
        "j_per_token": joules[batch].value if joules and batch else None,
        "bytes": manifest.size_bytes,
    }


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    rows = found["variants"]
    if not rows:
        return f"{found['store']} holds nothing yet"
    titles = ["name", "state", "quality", "low", "KL", "prefill tok/s", "decode tok/s", "J/token", "MB"]
    lines = [titles]
    for each in rows:
        figures = [each[key] for key in list(each)[2:-1]]
        cells = ["-" if value is None else f"{value:.4g}" for value in figures]
        lines.append([each["name"], each["state"], *cells, f"{each['bytes'] / 1e6:.0f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += methods_told(found["energy_methods"])
    stored, copies = found["stored_bytes"], found["copies_bytes"]
    saved = f", {1 - stored / copies:.0%} less" if copies else ""
    text.append(f"{stored / 1e6:.1f} MB stored; copies would take {copies / 1e6:.1f} MB{saved}")
    return "\n".join(text)

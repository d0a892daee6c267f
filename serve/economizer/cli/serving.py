"""``economizer up | check-config | variants | status``: serving, and what is served."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from economizer.cli.tables import table
from economizer.config import ServeFile, home, load
from economizer.errors import EconomizerError
from economizer.local import up
from economizer.variants.types import Variant

_TIMEOUT_S = 10.0


def add_serving(commands: Any) -> None:
    """``up``, ``check-config``, ``variants`` and ``status``."""

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    default = home() / "deploy" / "config.yaml"
    for name, run, text in (
        ("up", _up, "bring Ray, Serve and a configuration up on this machine, and stay until Ctrl-C"),
        ("check-config", _check_config, "name every mistake in a configuration at once"),
        ("variants", _variants, "what is known of each variant"),
    ):
        added = command(name, run, text)
        added.add_argument("file", type=Path, nargs="?", default=default, help=f"a Serve config (default {default})")
        if name == "variants":
            added.add_argument("--json", action="store_true", help="for machines")
    status = command("status", _status, "what a running gateway's engines are at")
    status.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway (default %(default)s)")
    status.add_argument("--json", action="store_true", help="for machines")


def _up(options: argparse.Namespace) -> int:
    return up(load(options.file))


def _check_config(options: argparse.Namespace) -> int:
    file = load(options.file)
    count = sum(1 for _ in file.configuration.variant_configs())
    print(f"{options.file}: well formed: {len(file.configuration.families)} families, {count} variants")
    return 0


def _variants(options: argparse.Namespace) -> int:
    rows = _variant_rows(load(options.file))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(table([_for_people(row) for row in rows]))
    return 0


def _variant_rows(file: ServeFile) -> list[dict[str, Any]]:
    families = file.configuration.catalog.families
    return [_variant_row(variant, v_full=family.full) for family in families for variant in family.variants]


def _variant_row(variant: Variant, v_full: str) -> dict[str, Any]:
    quality, speed, power, price = variant.quality, variant.speed, variant.power, variant.price
    energy = variant.energy
    return {
        "name": variant.id,
        "full": variant.name == v_full,
        "routed": variant.routed,
        "quality": quality.score if quality else None,
        "quality_low": quality.low if quality else None,
        "kl_mean": variant.kl_mean,
        "top1_agreement": variant.top1_agreement,
        "size_bytes": variant.size_bytes,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s if speed else None,
        "decode_tokens_per_s": dict(speed.decode_tokens_per_s) if speed else None,
        "energy_j_per_token": _energy_j_per_token(variant),
        "prefill_j_per_token": energy.prefill_j_per_token if energy else None,
        "decode_j_per_token": dict(energy.decode_j_per_token) if energy else None,
        "active_w": power.active_w if power else None,
        "usd_per_hour": price.usd_per_hour if price else None,
        "carbon_g_per_kwh": price.carbon_g_per_kwh if price else None,
        "context_tokens_max": variant.context_tokens_max,
        "replicas": f"{variant.replicas_min}-{variant.replicas_max}",
        "hardware": variant.hardware,
    }


def _energy_j_per_token(variant: Variant) -> float | None:
    """Active joules per output token at the largest batch that was measured."""
    if variant.energy is not None:
        card = variant.energy.decode_j_per_token
        return card[max(card)]
    power, speed = variant.power, variant.speed
    if power is not None and speed is not None:
        rates = speed.decode_tokens_per_s
        return (power.active_w - power.idle_w) / rates[max(rates)]
    return None


def _for_people(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same in columns that fit beside each other; decoding is at the largest batch that was measured."""
    size, rates, joules = row["size_bytes"], row["decode_tokens_per_s"], row["energy_j_per_token"]
    return {
        "name": row["name"],
        "full": row["full"],
        "routed": row["routed"],
        "quality": row["quality"],
        "low": row["quality_low"],
        "kl": row["kl_mean"],
        "top1": row["top1_agreement"],
        "MB": None if size is None else round(size / 1e6, 1),
        "prefill/s": row["prefill_tokens_per_s"],
        "decode/s": None if rates is None else f"{max(rates)}:{rates[max(rates)]:g}",
        "J/token": None if joules is None else float(f"{joules:.3g}"),
        "USD/h": row["usd_per_hour"],
        "context": row["context_tokens_max"],
        "replicas": row["replicas"],
        "hardware": row["hardware"],
    }


def _status(options: argparse.Namespace) -> int:
    url = f"{options.url.rstrip('/')}/readyz"
    try:
        found = _readiness(url)
    except (OSError, ValueError) as error:
        raise EconomizerError(f"No gateway answers at {options.url} ({error}): is `make run` running?") from None
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("ready" if found["ready"] else f"not ready: {', '.join(found['not_ready'])}")
        print(table(found["engines"]))
    return 0 if found["ready"] else 1


def _readiness(url: str) -> dict[str, Any]:
    """What a gateway says of itself, ready or not; raises OSError or ValueError where none answers."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            found = json.load(error)
    if not isinstance(found, dict) or not {"ready", "not_ready", "engines"} <= found.keys():
        raise ValueError("what answers there is no Economizer")
    return found

"""The command line: ``economizer-compress run | import | evaluate | gate | publish | fetch | list | clean | build``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from economizer_compression.catalogue import catalogued, catalogued_folders, unregister
from economizer_compression.commands import exit_code
from economizer_compression.errors import CompressionError, GateFailed
from economizer_compression.family import home
from economizer_compression.gate import Margins
from economizer_compression.progress import say
from economizer_compression.store import Store

# The libraries' own settings, unless the user's: no network, and no remarks between the lines of progress.
_LIBRARIES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 well, 1 not, 2 for a wrong command line, 3 for a gate that is shut."""
    options = _parser().parse_args(arguments)
    return exit_code(
        "economizer-compress", lambda: options.run(options), ours=(CompressionError,), libraries=_LIBRARIES
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="economizer-compress", description="Makes variants of a model, measured.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], object], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    run = command("run", _run, "make a variant of a model by a recipe")
    run.add_argument("recipe", help="one of compression/recipes, or a YAML file")
    run.add_argument("--model", type=Path, required=True, help="the full model's folder")
    run.add_argument("--variant", help="what it is called (default: the recipe's name)")
    imported = command("import", _import, "take over a checkpoint that was made elsewhere, AutoGPTQ's format too")
    imported.add_argument("folder", type=Path, help="its folder")
    imported.add_argument("--variant", required=True, help="what it is called")
    imported.add_argument("--full", action="store_true", help="it is the full model that variants are compared with")
    for added in (run, imported):
        added.add_argument("--out", type=Path, required=True, help="the folder to make")
        added.add_argument("--family", help="the logical model that it is a variant of (default: the model's folder)")
    evaluate = command("evaluate", _evaluate, "measure a variant against the full model: quality, speed, energy")
    evaluate.add_argument("folder", type=Path, help="the variant's folder")
    evaluate.add_argument("--reference", type=Path, required=True, help="the full model's folder")
    evaluate.add_argument("--engine", default="vllm-cpu", help="one of compression/engines, or a YAML file")
    part = evaluate.add_mutually_exclusive_group()
    part.add_argument("--quality-only", action="store_true", help="start no engine")
    part.add_argument("--speed-only", action="store_true", help="on the engine alone")
    for added in (run, evaluate):
        _add_text_options(added, default="builtin")
    gate = command("gate", _gate, "promote a variant, or say which bound failed and by how much (exit code 3)")
    gate.add_argument("folder", type=Path, help="the variant's folder, evaluated")
    for field, value in (("quality_loss", Margins().quality_loss), ("accuracy_loss", Margins().accuracy_loss)):
        text = "the largest loss that the lower bound may show (default %(default)s)"
        gate.add_argument(f"--{field.replace('_', '-')}", type=float, default=value, help=text)
    publish = command("publish", _publish, "put a variant in the store and in the catalogue that the gateway reads")
    publish.add_argument("folder", type=Path, help="the variant's folder")
    fetch = command("fetch", _fetch, "bring a published variant to a folder of this machine, every byte checked")
    fetch.add_argument("name", help="FAMILY@VARIANT")
    fetch.add_argument("--out", type=Path, required=True, help="the folder to make")
    listing = command("list", _list, "what the store holds, and what it takes against copies")
    listing.add_argument("--verify", action="store_true", help="read every byte and name what is damaged")
    listing.add_argument("--json", action="store_true", help="for machines")
    clean = command("clean", _clean, "remove from the store what no catalogue names, after asking")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.add_argument(
        "--drop", action="append", default=[], metavar="FAMILY@VARIANT", help="take it off the catalogue"
    )
    build = command("build", _build, "make, evaluate, gate and publish all variants of a family file")
    build.add_argument("file", type=Path, help="one of compression/families, or your own")
    build.add_argument("--only", action="append", default=[], metavar="VARIANT", help="these variants alone")
    build.add_argument("--out", type=Path, help="where the variants are made (default .economizer/variants/FAMILY)")
    _add_text_options(build, default=None)
    for added in (gate, publish, fetch, listing, clean, build):
        default = os.environ.get("ECONOMIZER_STORE") or str(home() / ".economizer" / "store")
        added.add_argument("--store", default=default, help="a folder or an fsspec URL (default %(default)s)")
    for added in (gate, publish, clean, build):
        added.add_argument("--catalogue", type=Path, help="the gateway's file (default: catalogue.yaml in the store)")
    return parser


def _add_text_options(command: argparse.ArgumentParser, *, default: str | None) -> None:
    command.add_argument("--suite", default=default, help="one of compression/suites, or a YAML file")
    data = os.environ.get("ECONOMIZER_DATA")
    command.add_argument("--data", type=Path, default=data, help="the folder that the suite's files are in")


# What the commands import is slow to import (torch, transformers), so that each imports its own.


def _run(options: argparse.Namespace) -> None:
    from economizer_compression.make import Job, make_variant
    from economizer_compression.model_folder import ModelFolder
    from economizer_compression.recipes import load_recipe
    from economizer_compression.suite import load_suite

    recipe = load_recipe(options.recipe)
    source = ModelFolder.open(options.model)
    manifest = make_variant(
        Job(
            recipe=recipe,
            source=source,
            out=options.out,
            family=options.family or options.model.resolve().name,
            variant=options.variant or recipe.name,
            suite=load_suite(options.suite),
            data=options.data,
        ),
        say,
    )
    say(f"{manifest.family}@{manifest.variant}: {manifest.size_bytes / 1e6:.0f} MB in {options.out}")


def _import(options: argparse.Namespace) -> None:
    from economizer_compression.importing import import_checkpoint

    family = options.family or options.folder.resolve().name
    manifest = import_checkpoint(
        options.folder, options.out, family=family, variant=options.variant, full=options.full, say=say
    )
    say(f"{family}@{manifest.variant}: {manifest.quantization or 'not quantised'}, in {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    from economizer_compression.measure import measure_quality, measure_speed

    if not options.speed_only:
        measure_quality(options.folder, options.reference, suite=options.suite, data=options.data, say=say)
    if not options.quality_only:
        failures = measure_speed([options.folder], options.reference, engine=options.engine, say=say)
        for why in failures.values():
            raise CompressionError(why)


def _gate(options: argparse.Namespace) -> None:
    from economizer_compression.promotion import promote

    _refuse_catalogue_for_url(options)
    margins = _checked(lambda: Margins(quality_loss=options.quality_loss, accuracy_loss=options.accuracy_loss))
    verdict = promote(options.folder, Store(options.store), _catalogue(options), margins)
    if not verdict.promoted:
        raise GateFailed(f"{options.folder.name} is not promoted: {'; '.join(verdict.reasons)}")
    say(f"{options.folder.name} is promoted: {'; '.join(verdict.reasons)}")


def _checked(build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ValueError as error:
        raise CompressionError(str(error)) from None


def _publish(options: argparse.Namespace) -> None:
    from economizer_compression.promotion import publish

    _refuse_catalogue_for_url(options)
    for line in publish([options.folder], Store(options.store), _catalogue(options)):
        say(line)


def _catalogue(options: argparse.Namespace) -> Path | None:
    """The catalogue that goes with the store; a store behind a URL has none unless it is named."""
    if options.catalogue is not None:
        return Path(options.catalogue)
    return None if "://" in options.store else Path(options.store) / "catalogue.yaml"


def _refuse_catalogue_for_url(options: argparse.Namespace) -> None:
    if options.catalogue is not None and "://" in options.store:
        raise CompressionError("--catalogue names folders of this machine: `fetch` from the store and publish there")


def _fetch(options: argparse.Namespace) -> None:
    family, at, variant = options.name.partition("@")
    if not at:
        raise CompressionError(f"{options.name!r} is no variant: must be FAMILY@VARIANT")
    manifest = Store(options.store).fetch(family, variant, options.out)
    say(f"{options.name}: {manifest.size_bytes / 1e6:.0f} MB in {options.out}")


def _list(options: argparse.Namespace) -> int:
    from economizer_compression.listing import listing, table

    store = Store(options.store)
    found = listing(store)
    print(json.dumps(found, indent=2) if options.json else table(found))
    problems = store.verify() if options.verify else []
    for problem in problems:
        print(f"economizer-compress: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _clean(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    if catalogue is None:
        raise CompressionError("a store behind a URL has no catalogue of its own: name the gateway's with --catalogue")
    store = Store(options.store)
    if not catalogue.is_file() and store.variants():
        raise CompressionError(f"there is no catalogue {catalogue}, and all of {options.store} would go: name it")
    names = {(record.manifest.family, record.manifest.variant) for record in store.variants()}
    dropped = {(family, variant) for family, _, variant in (name.partition("@") for name in options.drop)}
    if unknown := sorted("@".join(pair) for pair in dropped - names):
        raise CompressionError(f"--drop {unknown[0]}: is not in the store, which holds {sorted(map('@'.join, names))}")
    unused = store.unused(catalogued(catalogue) - dropped, catalogued_folders(catalogue, without=dropped))
    if not (unused.records or unused.views or unused.blobs or unused.leftovers or dropped):
        say("nothing to remove")
        return 0
    for record in unused.records:
        print(f"  variant {record.id}")
    print(f"  {len(unused.views)} folders, {len(unused.blobs)} blobs: {unused.size_bytes / 1e6:.1f} MB")
    if not options.yes and input("Remove them? [y/N] ").strip().lower() not in ("y", "yes"):
        say("nothing was removed")
        return 1
    unregister(catalogue, dropped)
    store.remove(unused)
    say("removed")
    return 0


def _build(options: argparse.Namespace) -> None:
    from economizer_compression.build import Build, build_family
    from economizer_compression.family import load_family

    family = load_family(options.file)
    if unknown := sorted(set(options.only) - set(family.variants)):
        raise CompressionError(f"--only {unknown[0]}: must be one of {', '.join(family.variants)}")
    build_family(
        Build(
            family=family,
            only=frozenset(options.only or family.variants),
            out=options.out or home() / ".economizer" / "variants" / family.family,
            suite=options.suite or family.suite,
            data=options.data,
            store=Store(options.store),
            catalogue=_catalogue(options),
        ),
        say,
    )


if __name__ == "__main__":
    sys.exit(main())

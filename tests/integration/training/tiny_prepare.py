"""Prepares a few dozen documents in the training environment, and says as JSON what came of it.

``tiny_prepare.py FOLDER TOKENIZER``: the folder's files are made here, so that all kinds of file are read.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found,unused-ignore]
from typing import Any

import numpy as np
import yaml
from economizer_training.cli import main
from economizer_training.data.chat import NotRendered, chat_tokens
from economizer_training.data.near import near_duplicates, signature
from economizer_training.data.rules import RULES
from economizer_training.shards import Shards

EVALUATED = "The ship that carried the last of the economizers left the harbour at noon on a Tuesday in November."
GERMAN = (
    "Der Economizer nimmt dem Rauch die Hitze, die sonst durch den Schornstein ginge. Er spart ein Viertel der Kohle. "
    "Edward Green hat ihn im Jahr 1845 erfunden. Heute steht er in jedem Kraftwerk. Das Wasser wird darin warm. "
    "Wer ihn nicht hat, der heizt den Himmel und bezahlt dieses Tag um Tag mit einem hohen Preis an seinen Lieferanten."
)
MOJIBAKE = "The cafÃ© on the corner serves the crew of the boiler house. "


NOISE = "zq xvk 9f wob kyr ;; jtt 00u plm vbx qqa rrt zzn mwk ytr 77e"


def plain(number: int) -> str:
    """A short document that no other one is like."""
    fruit = ("apples", "pears", "plums", "cherries", "lemons", "grapes", "figs", "dates")[number % 8]
    place = ("in the old market", "at the station", "behind the school")[number // 8]
    return f"Every morning a farmer sells {number + 3} {fruit} {place}. People like them: they are fresh and cheap."


def prose(number: int) -> str:
    """A page of its own: a topic of CPython's help, whose sentences are long enough for the rules."""
    name = sorted(topics, key=lambda name: (-len(topics[name]), name))[number]
    return str(topics[name])


def write_files(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    pages = [prose(number) for number in range(24)]
    (folder / "a.txt").write_text(pages[0], encoding="utf-8")
    rows = [
        *pages[1:12],
        pages[1].upper(),  # the same words
        pages[2].replace(" the ", " these ", 3),  # nearly the same words
        f"{pages[20]}\n\n{EVALUATED}",
        GERMAN,
        MOJIBAKE + pages[21],
        f"Write to ada@example.com. {pages[22]}",
        "Too short.",
    ]
    _lines(folder / "b.jsonl", [{"text": text} for text in rows])
    parquet.write_table(pa.table({"text": [*pages[12:20], pages[1]]}), folder / "c.parquet")
    chats: list[list[dict[str, str]]] = [
        [{"role": "user", "content": f"What is {n} and one?"}, {"role": "assistant", "content": f"{n + 1}."}]
        for n in range(20)
    ]
    chats.append([{"role": "user", "content": "And nobody answers?"}])
    _lines(folder / "chats.jsonl", [{"messages": chat} for chat in chats])
    sums = [{"question": f"Twice {n}?", "answer": f"{2 * n}", "kind": "rare"} for n in range(4)]
    _lines(folder / "sums.jsonl", sums)
    _lines(folder / "plain.jsonl", [{"text": text} for text in (*map(plain, range(23)), NOISE)])
    (folder / "evaluation.txt").write_text(EVALUATED)
    (folder / "broken.txt").write_bytes(b"fine\nnot \xff fine\n")


def _lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(tokenizer: str, **changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer,
        "seed": 5,
        "sources": [
            {"name": "pages", "files": ["a.txt", "b.jsonl", "*.parquet"]},
            {"name": "chats", "files": "chats.jsonl", "messages": "messages"},
            {
                "name": "sums",
                "files": "sums.jsonl",
                "slice": "kind",
                "templates": [
                    {"user": "{question}", "assistant": "{answer}"},
                    {"user": "Compute. {question}", "assistant": "It is {answer}"},
                ],
            },
        ],
        "cleaning": {
            "languages": ["en"],
            "mask": ["email"],
            "rules": {rule.name: False for rule in RULES if rule.name != "words_min"},  # a manual is no prose
            "length_outliers": None,
        },
        "decontamination": {"against": "evaluation.txt"},
        "sampling": {"alpha": 0, "repeats_max": 2},
        "packing": {"tokens": 256, "shards": 2, "held_out": 0.1},
        **changes,
    }


def prepared(folder: Path, name: str, content: dict[str, Any]) -> tuple[int, str]:
    """The exit code of a run, and what it said."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(content))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["prepare", str(config), "--out", str(folder / name), "--data", str(folder)])
    return code, said.getvalue()


def segments(shards: Shards, tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Every document of every row as text, with its split."""
    return ((split, whole) for split, whole, _ in learnt(shards, tokenizer))


def learnt(shards: Shards, tokenizer: Any) -> Iterator[tuple[str, str, str]]:
    """Every document of every row: its split, its text, and the text of what counts."""
    for split in ("train", "heldout"):
        rows = range(shards.rows(split))
        for row, mark, counts in zip(*shards.read(split, rows), shards.counted(split, rows), strict=True):
            for number in range(1, int(mark.max()) + 1):
                here = mark == number
                yield split, tokenizer.decode(row[here]), tokenizer.decode(row[here & counts])


def turns(tokenizer: Any) -> dict[str, str]:
    """What the assistant says in a chat of two turns, and why it cannot be told with a template that cuts the first."""
    said = zip(("user", "assistant") * 2, ("3 and one?", "4.", "And one?", "5."), strict=True)
    chat = [{"role": role, "content": content} for role, content in said]
    ids, counted = chat_tokens(tokenizer, chat, "assistant")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last else '-' }};{% endfor %}"
    try:
        chat_tokens(tokenizer, chat, "assistant")
    except NotRendered as refused:
        return {"said": tokenizer.decode(ids[counted]), "cut": str(refused)}
    return {}


def taught(folder: Path, tokenizer_folder: str, tokenizer: Any) -> dict[str, Any]:
    """What comes of a preparation in which the teacher has a say in everything, and of the same once more."""
    content = settings(
        tokenizer_folder,
        sources=[
            {"name": "plain", "files": "plain.jsonl", "rules": False},
            {"name": "chats", "files": "chats.jsonl", "messages": "messages"},
            {"name": "asked", "files": "sums.jsonl", "templates": [{"user": "{question}"}]},
        ],
        cleaning={"perplexity_outliers": 3.5, "length_outliers": None},
        deduplication={"near": None},
        decontamination={},
        sampling={},
        answers={"tokens": 8},
        paraphrases={"share": 0.5, "tokens": 48},
        packing={"tokens": 128, "shards": 1, "held_out": 0.1, "counted": "assistant"},
    )
    code, said = prepared(folder, "taught", content)
    answers = folder / "answers" / "train-00000"
    asked = {path.name: path.read_bytes() for path in sorted(answers.glob("*.jsonl"))}
    again = prepared(folder, "taught-again", content)[0]
    shards = Shards.open(folder / "taught")
    return {
        "run": [code, said],
        "again": again,
        "same": shards.sha256 == Shards.open(folder / "taught-again").sha256,
        "asked": len(asked),
        "asked_again": asked != {path.name: path.read_bytes() for path in sorted(answers.glob("*.jsonl"))},
        "learnt": list(learnt(shards, tokenizer)),
    }


def run(folder: Path, tokenizer_folder: str) -> dict[str, Any]:
    from transformers import AutoTokenizer

    write_files(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    first = prepared(folder, "first", settings(tokenizer_folder))
    again = prepared(folder, "again", settings(tokenizer_folder))
    broken = prepared(
        folder, "broken", settings(tokenizer_folder, sources=[{"name": "pages", "files": ["a.txt", "broken.txt"]}])
    )
    short = prepared(folder, "short", settings(tokenizer_folder, sources=[{"name": "few", "files": "evaluation.txt"}]))
    asking = {
        "sources": [{"name": "asked", "files": "sums.jsonl", "templates": [{"user": "{question}"}]}],
        "answers": {"tokens": 8},
        "sampling": {"alpha": 1},
        "decontamination": {},
    }
    asked = prepared(folder, "asked", settings(tokenizer_folder, **asking))
    shards = Shards.open(folder / "first")
    shards.verify()
    page = prose(3)
    sketches = [signature(text, words=5, permutations=128) for text in (page, prose(4), page + " The end.", page[:900])]
    return {
        "first": first,
        "again": again,
        "broken": broken,
        "short": short,
        "asked": asked,
        "taught": taught(folder, tokenizer_folder, tokenizer),
        "answers": [text for _, text in segments(Shards.open(folder / "asked"), tokenizer)],
        "same": shards.sha256 == Shards.open(folder / "again").sha256,
        "whole": sorted(path.parent.name for path in folder.glob("*/shards.json")),
        "files": sorted(path.name for path in (folder / "first").iterdir()),
        "segments": list(segments(shards, tokenizer)),
        "turns": turns(AutoTokenizer.from_pretrained(tokenizer_folder)),
        "near": near_duplicates(sketches, 0.8),
        "none_near": near_duplicates([], 0.8),
        "ngrams": int(np.fromfile(folder / "first" / "calibration.ngrams", "<u8").size),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2])))

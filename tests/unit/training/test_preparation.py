"""What a preparation's file may say, and what is refused before any work with the key, the value and the rule."""

from pathlib import Path
from typing import Any

import pytest
from economizer_training.data.config import Preparation, Source, Template
from economizer_training.errors import TrainingError
from economizer_training.settings import load_settings, parse_settings

RUNS = Path(__file__).parents[3] / "training" / "runs"
PLAIN = {"tokenizer": "./model", "sources": [{"name": "web", "files": "a.txt"}]}


def parsed(**changes: Any) -> Preparation:
    return parse_settings({**PLAIN, **changes}, Preparation, "prepare.yaml")


def test_two_lines_are_a_preparation() -> None:
    assert parsed() == Preparation(tokenizer="./model", sources=(Source(name="web", files=("a.txt",)),))


def test_a_source_is_documents_chats_or_fields_for_templates() -> None:
    template = {"user": "{question}", "assistant": "{answer.0.text}", "system": "Be brief."}
    sources = parsed(
        sources=[
            {"name": "a", "files": ["a.txt"]},
            {"name": "b", "files": ["b.jsonl"], "messages": "messages"},
            {"name": "c", "files": ["c.jsonl"], "templates": [template, {"user": "{topic}", "assistant": "{text}"}]},
        ]
    ).sources
    assert [source.kind for source in sources] == ["text", "chat", "fields"]
    assert sources[2].fields == ("answer.0.text", "question", "text", "topic")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sauces": []}, "sauces: is not a known key here"),
        ({"sources": []}, "must name at least one source"),
        ({"sources": [{"name": "a", "files": []}]}, "must name at least one file"),
        ({"sources": [{"name": "a:b", "files": "x"}]}, "must have no / : or space"),
        ({"sources": [{"name": "a", "files": "x"}, {"name": "a", "files": "y"}]}, "must have different names"),
        ({"sources": [{"name": "a", "files": "x", "encoding": "UTF-16"}]}, "lines end with the byte 0x0a"),
        ({"sources": [{"name": "a", "files": "x", "fields": "y"}]}, "sources.0.fields: is not a known key here"),
        ({"cleaning": {"rules": {"words_mim": 3}}}, "rules is ['words_mim']: must be of alphabetic_words_min"),
        ({"cleaning": {"mask": ["name"]}}, "cleaning.mask.0: 'name': Input should be 'email'"),
        ({"cleaning": {"characters_min": 9, "characters_max": 8}}, "must be between 1 and characters_max (8)"),
        ({"deduplication": {"near": 1}}, "must be between 0 and 1, or null"),
        ({"decontamination": {"words": 2}}, "must be 4 or more"),
        ({"sampling": {"alpha": 2}}, "must be between 0 and 1"),
        (
            {"sources": [{"name": "a", "files": "x", "templates": [{"user": "{q}"}]}]},
            "answers is None: must be given for templates of ['a']",
        ),
        ({"answers": {"tokens": 0}}, "must be 1 or more"),
        ({"cleaning": {"perplexity_outliers": 0}}, "perplexity_outliers is 0.0: must be above 0"),
        ({"paraphrases": {"share": 0}}, "share is 0.0: must be above 0 and at most 1"),
        ({"paraphrases": {"prompt": "In other words?"}}, "must have {text} where the text goes"),
        ({"paraphrases": {"tokens": 8}}, "must be 16 or more"),
        ({"paraphrases": {"temperature": 1}}, "paraphrases.temperature: is not a known key here"),
        ({"packing": {"counted": "user"}}, "packing.counted: 'user': Input should be 'all' or 'assistant'"),
        ({"packing": {"tokens": 8}}, "must be 16 or more"),
        ({"packing": {"held_out": 1.0}}, "must be at least 0 and under 1"),
    ],
)
def test_what_is_wrong_is_refused_with_its_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as refused:
        parsed(**changes)
    assert message in str(refused.value)
    assert str(refused.value).startswith("prepare.yaml: ")


@pytest.mark.parametrize("name", ["prepare-builtin", "prepare-public"])
def test_a_preparation_that_comes_with_the_package_is_well_formed(name: str) -> None:
    found = load_settings(RUNS / f"{name}.yaml", Preparation)
    assert found.decontamination.against


def test_messages_and_templates_are_two_kinds_of_row() -> None:
    with pytest.raises(ValueError, match="must not stand beside templates"):
        Source(name="a", files=("x",), messages="m", templates=(Template(user="{q}", assistant="{a}"),))


def test_a_template_without_a_field_would_make_the_same_chat_of_every_row() -> None:
    with pytest.raises(ValueError, match="must name at least one field"):
        Template(user="Hello", assistant="Hi")


def test_a_file_that_is_no_yaml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no file"):
        load_settings(tmp_path / "absent.yaml", Preparation)
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(TrainingError, match=r"odd\.yaml is not YAML"):
        load_settings(tmp_path / "odd.yaml", Preparation)
    (tmp_path / "short.yaml").write_text("sources: [{name: a, files: a.txt}]")
    with pytest.raises(TrainingError, match=r"short\.yaml: tokenizer: must be given"):
        load_settings(tmp_path / "short.yaml", Preparation)

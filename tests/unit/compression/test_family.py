"""What a family's file may say of how each variant comes about."""

from pathlib import Path

import pytest
import yaml
from economizer_compression.errors import CompressionError
from economizer_compression.family import FamilyFile, load_family

FAMILIES = Path(__file__).parents[3] / "compression" / "families"


def written(folder: Path, variants: object) -> Path:
    file = folder / "family.yaml"
    content = {"family": "tiny", "model": "./model", "full": "bf16", "engine": "vllm-cpu", "variants": variants}
    file.write_text(yaml.safe_dump(content))
    return file


def loaded(folder: Path, variants: object) -> FamilyFile:
    return load_family(written(folder, variants))


def test_a_variant_comes_of_the_full_model_or_of_one_that_lies_there(tmp_path: Path) -> None:
    family = loaded(tmp_path, {"int8": "int8-rtn", "student": None, "both": {"recipe": "int8", "of": "student"}})
    told = {name: (family.recipe(name), family.source(name)) for name in family.variants}
    assert told == {"int8": ("int8-rtn", "bf16"), "student": (None, "bf16"), "both": ("int8", "student")}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"both": {"recipe": "int8", "of": "student"}}, "must be one that lies there, of []"),
        ({"a": "int8", "b": {"recipe": "int8", "of": "a"}}, "variants.b.of is 'a': must be one that lies there, of []"),
        ({"both": {"recipe": "int8"}}, "of"),
        ({"bf16": None}, "must not make the full model"),
    ],
)
def test_a_variant_of_nothing_that_lies_there_is_refused(tmp_path: Path, variants: object, message: str) -> None:
    with pytest.raises(CompressionError) as refused:
        loaded(tmp_path, variants)
    assert message in str(refused.value)


def test_the_families_that_come_with_the_package_are_well_formed() -> None:
    distilled = load_family(FAMILIES / "smollm2-135m-distilled.yaml")
    assert distilled.source("distilled-20-int8") == "distilled-20"
    assert load_family(FAMILIES / "smollm2-135m.yaml").source("int8") == distilled.full

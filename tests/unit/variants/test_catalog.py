import pytest
from economizer.errors import ModelNotFound
from economizer.variants.catalog import Catalog, ModelName
from economizer.variants.types import Family
from examples import variant


def llama() -> Family:
    full, int8 = variant("full", family="llama", loras=("french",)), variant("int8", family="llama")
    return Family(name="llama", full="full", variants=(full, int8), aliases=("gpt-4o",))


def qwen() -> Family:
    return Family(name="qwen", full="full", variants=(variant("full", family="qwen"),))


def test_every_name_that_a_request_may_use_and_what_it_means() -> None:
    assert dict(Catalog(families=(llama(), qwen())).models()) == {
        "french": ModelName(family="llama", lora="french"),
        "french@full": ModelName(family="llama", variant="full", lora="french"),
        "gpt-4o": ModelName(family="llama"),
        "gpt-4o@full": ModelName(family="llama", variant="full"),
        "gpt-4o@int8": ModelName(family="llama", variant="int8"),
        "llama": ModelName(family="llama"),
        "llama@full": ModelName(family="llama", variant="full"),
        "llama@int8": ModelName(family="llama", variant="int8"),
        "qwen": ModelName(family="qwen"),
        "qwen@full": ModelName(family="qwen", variant="full"),
    }


def test_models_are_listed_in_the_order_of_their_names() -> None:
    names = [name for name, _ in Catalog(families=(qwen(), llama())).models()]
    assert names == sorted(names)


def test_a_name_resolves_to_what_it_means() -> None:
    assert Catalog(families=(llama(),)).resolve("gpt-4o@int8") == ModelName(family="llama", variant="int8")


@pytest.mark.parametrize("model", ["llama@int4", "french@int8", "@full", "llama@", "Llama", ""])
def test_an_unknown_model_is_refused_and_the_known_ones_are_named(model: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        Catalog(families=(llama(), qwen())).resolve(model)
    assert refused.value.message == f"The model {model!r} does not exist. There are: french, gpt-4o, llama, qwen."
    assert refused.value.param == "model"


def test_a_very_long_model_name_is_not_echoed_whole() -> None:
    with pytest.raises(ModelNotFound) as refused:
        Catalog(families=(llama(),)).resolve("x" * 5000)
    assert len(refused.value.message) < 200


def test_a_family_is_found_by_its_name_only() -> None:
    catalog = Catalog(families=(llama(),))
    assert catalog.family("llama") == llama()
    with pytest.raises(KeyError):
        catalog.family("gpt-4o")


@pytest.mark.parametrize(
    ("aliases", "loras", "twice"),
    [(("llama",), (), "llama"), (("qwen", "qwen"), (), "qwen"), ((), ("french",), "french"), (("x",), ("x",), "x")],
    ids=["another family's name", "its own name", "another family's LoRA adapter", "its own LoRA adapter"],
)
def test_two_models_cannot_have_one_name(aliases: tuple[str, ...], loras: tuple[str, ...], twice: str) -> None:
    other = Family(name="qwen", full="full", variants=(variant("full", family="qwen", loras=loras),), aliases=aliases)
    with pytest.raises(ValueError, match=f"^families is \\['{twice}'\\]: must have names, aliases and LoRA adapters"):
        Catalog(families=(llama(), other))


def test_variants_of_one_family_may_serve_the_same_lora_adapter() -> None:
    both = tuple(variant(name, loras=("french",)) for name in ("full", "int8"))
    catalog = Catalog(families=(Family(name="m", full="full", variants=both),))
    assert catalog.resolve("french") == ModelName(family="m", lora="french")
    assert catalog.resolve("french@int8") == ModelName(family="m", variant="int8", lora="french")

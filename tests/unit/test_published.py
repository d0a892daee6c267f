"""The catalogue of published variants, laid over what a configuration declares."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from economizer.config import AUTOSCALING_POLICY, IMPORT_PATH, Configuration, load, parse, with_catalogue
from economizer.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st

ARGS: dict[str, Any] = {
    "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
    "families": {
        "m": {
            "full": "bf16",
            "variants": {
                "bf16": {
                    "engine": {"model": "./models/m", "args": ["--eager"], "env": {"A": "1"}, "python": "python3"},
                    "context_tokens_max": 2048,
                    "concurrency_max": 8,
                    "features": ["chat"],
                    "loras": ["french"],
                    "hardware": "cpu",
                    "scaling": {"to_zero_s": 7},
                    "ray": {"memory_gib": 3.5},
                    "quality": {"score": 1.0, "source": "declared"},
                    "speed": {"prefill_tokens_per_s": 1, "decode_tokens_per_s": {1: 1}, "source": "declared"},
                    "power": {"active_w": 4, "source": "declared"},
                },
                "int8": {
                    "engine": {"model": "./models/m-int8", "args": ["--int8"]},
                    "context_tokens_max": 1024,
                    "hardware": "cpu",
                    "quality": {"score": 0.9, "low": 0.8, "source": "declared"},
                    "power": {"active_w": 3, "source": "declared"},
                },
            },
        }
    },
}
MEASURED: dict[str, Any] = {
    "routed": False,
    "quality": {"score": 0.93, "source": "measured"},
    "speed": {"prefill_tokens_per_s": 900, "decode_tokens_per_s": {1: 36, 16: 300}, "source": "measured"},
    "energy": {"prefill_j_per_token": 0.004, "decode_j_per_token": {1: 0.1}, "source": "measured"},
    "size_bytes": 163_000_000,
    "kl_mean": 0.018,
    "top1_agreement": 0.925,
}
Home = Path


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Where relative paths begin."""
    monkeypatch.setenv("ECONOMIZER_HOME", str(tmp_path))
    (tmp_path / "store").mkdir()
    return tmp_path


def published(home: Home, variants: Any, family: str = "m") -> dict[str, Any]:
    """``args`` with a catalogue of these variants laid over them."""
    text = yaml.safe_dump({"families": {family: {"variants": variants}}})
    (home / "store" / "catalogue.yaml").write_text(text, encoding="utf-8")
    found: dict[str, Any] = with_catalogue({**ARGS, "catalogue": "./store/catalogue.yaml"})
    return found


def mistakes(made: Callable[[], object]) -> tuple[str, list[str]]:
    """What is wrong, and in which file."""
    with pytest.raises(ConfigurationError) as refused:
        made()
    return refused.value.source, [str(mistake) for mistake in refused.value.mistakes]


def variants(args: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = args["families"]["m"]["variants"]
    return found


DECLARED = variants(ARGS)


def test_a_measured_card_replaces_the_declared_one_as_a_whole_and_what_is_not_measured_stays(base: Home) -> None:
    found = published(base, {"int8": MEASURED})
    assert variants(found) == {"bf16": DECLARED["bf16"], "int8": {**DECLARED["int8"], **MEASURED}}
    assert "catalogue" not in found
    int8 = parse(found).variant("m", "int8")
    assert int8.quality is not None
    assert int8.power is not None
    assert (int8.quality.low, int8.power.active_w, int8.routed, int8.kl_mean) == (None, 3.0, False, 0.018)


def test_args_are_left_as_they_were(base: Home) -> None:
    before = copy.deepcopy(ARGS)
    published(base, {"int8": MEASURED, "tiny": {"engine": {"model": "./tiny"}}})
    assert before == ARGS


def test_a_null_says_that_nothing_was_measured(base: Home) -> None:
    assert variants(published(base, {"int8": dict.fromkeys([*MEASURED, "engine", "power"])})) == DECLARED


def test_a_variant_that_args_do_not_have_sleeps_beside_the_full_one_and_takes_its_engine(base: Home) -> None:
    found = published(base, {"tiny": {**MEASURED, "engine": {"model": "./checkpoints/m/tiny-0a1b"}}})
    assert variants(found)["tiny"] == {
        **MEASURED,
        "engine": {
            "model": str(base / "store/checkpoints/m/tiny-0a1b"),
            "args": ["--eager"],
            "env": {"A": "1"},
            "python": "python3",
        },
        "context_tokens_max": 2048,
        "concurrency_max": 8,
        "features": ["chat"],
        "hardware": "cpu",
        "scaling": {"to_zero_s": 7},
        "ray": {"memory_gib": 3.5},
        "power": {"active_w": 4, "source": "declared"},
        "replicas": {"min": 0, "max": 1},
    }
    tiny = parse(found).variant("m", "tiny")
    assert (tiny.replicas_min, tiny.replicas_max, tiny.loras) == (0, 1, ())


def test_a_model_of_the_catalogue_lies_beside_it_and_how_its_engine_is_started_stays(base: Home) -> None:
    found = variants(published(base, {"int8": {"engine": {"model": "./int8-1"}}, "bf16": {"engine": {"model": "/m"}}}))
    assert found["int8"]["engine"] == {"model": str(base / "store/int8-1"), "args": ["--int8"]}
    assert found["bf16"]["engine"]["model"] == "/m"
    (base / "store" / "catalogue.yaml").write_text("families: {m: {variants: {int8: {engine: {model: org/model}}}}}")
    hub = with_catalogue({**ARGS, "catalogue": str(base / "store" / "catalogue.yaml")})
    assert variants(hub)["int8"]["engine"]["model"] == "org/model"


def test_families_that_args_do_not_have_are_left_out(base: Home) -> None:
    without = {key: value for key, value in ARGS.items() if key != "catalogue"}
    assert published(base, {"int8": {"engine": {"model": "./x"}}}, family="other") == without


def test_before_anything_was_published_there_is_nothing_to_lay_over(base: Home) -> None:
    assert with_catalogue({**ARGS, "catalogue": "./store/catalogue.yaml"}) == ARGS
    assert with_catalogue({**ARGS, "catalogue": "./no/such/folder/catalogue.yaml"}) == ARGS
    assert with_catalogue(ARGS) == ARGS


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "(the whole file): None: Input should be a dictionary or an instance of Published"),
        ("families: [", "yaml: 'catalogue.yaml': must be valid YAML: while parsing a flow node"),
        ("famillies: {}", "families: (absent): must be given"),
        ("families: {m: {variants: {int8: {size: 3}}}}", "families.m.variants.int8.size: 3: is not a known key here"),
        (
            "families: {m: {variants: {int8: {engine: {command: [rm]}}}}}",
            "families.m.variants.int8.engine.model: (absent): must be given",
        ),
        (
            "families: {m: {variants: {int8: {quality: {score: 2, source: x}}}}}",
            "families.m.variants.int8.quality: {'score': 2, 'source': 'x'}: score is 2.0: must be between 0 and 1",
        ),
        (
            "families: {m: {variants: {int8: {top1_agreement: 2}}}}",
            "families.m.variants.int8: {'top1_agreement': 2}: top1_agreement is 2.0: must be between 0 and 1",
        ),
        (
            "families: {m: {variants: {tiny: {routed: true}}}}",
            "families.m.variants.tiny.engine.model: (absent): must be given, since args have no variant of this name",
        ),
        (
            "families: {m: {variants: {'a@b': {engine: {model: x}}}}}",
            "families.m.variants.a@b: 'a@b': a variant's name must have no '@', ':' or space in it",
        ),
        (
            "families: {m: {variants: {bf16: {routed: false}}}}",
            "families.m.variants.bf16.routed: False: must be true: it is the family's full variant, which the others "
            "are compared with",
        ),
    ],
)
def test_a_catalogue_that_is_broken_is_named_with_the_key(text: str, mistake: str, base: Home) -> None:
    path = base / "store" / "catalogue.yaml"
    path.write_text(text, encoding="utf-8")
    source, found = mistakes(lambda: with_catalogue({**ARGS, "catalogue": "./store/catalogue.yaml"}))
    assert source == str(path)
    assert found[0].startswith(mistake)


@pytest.mark.parametrize("value", [None, "", 3, ["x"], "s3://bucket/catalogue.yaml"])
def test_what_is_no_path_of_a_file_is_refused(value: object) -> None:
    source, found = mistakes(lambda: with_catalogue({"catalogue": value}, source="f.yaml", prefix="args"))
    assert (source, found) == ("f.yaml", [f"args.catalogue: {value!r}: must be the path of a file on this machine"])


def test_a_catalogue_that_cannot_be_read_is_named(base: Home) -> None:
    source, found = mistakes(lambda: with_catalogue({**ARGS, "catalogue": "./store"}))
    assert source == str(base / "store")
    assert found[0].startswith(f"file: {str(base / 'store')!r}: must be readable: ")


def serve_file(home: Home, **deployment: Any) -> Path:
    application = {
        "import_path": IMPORT_PATH,
        "autoscaling_policy": {"policy_function": AUTOSCALING_POLICY},
        "args": {**ARGS, "catalogue": "./store/catalogue.yaml"},
        "deployments": [{"name": "gateway", **deployment}],
    }
    path = home / "config.yaml"
    path.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": [application]}), encoding="utf-8"
    )
    return path


def test_a_file_is_loaded_with_its_catalogue_and_a_user_config_lies_over_both(base: Home) -> None:
    tiny = {**MEASURED, "engine": {"model": "./tiny"}}
    expected: Configuration = parse(published(base, {"tiny": tiny}))
    assert load(serve_file(base)).configuration == expected
    believed = {"families": {"m": {"variants": {"tiny": {"routed": True, "kl_mean": 0.5}}}}}
    changed = load(serve_file(base, user_config=believed)).configuration.variant("m", "tiny")
    assert (changed.routed, changed.kl_mean, changed.top1_agreement) == (True, 0.5, 0.925)


def test_what_is_wrong_in_args_is_named_as_such_whatever_the_catalogue_says(base: Home) -> None:
    published(base, {"tiny": {"engine": {"model": "./tiny"}}})
    file = serve_file(base)
    for broken in ({}, {"m": 3}, {"m": {"full": 3, "variants": {"int8": 3}}}, {"m": {"variants": []}}, None, [1]):
        content = yaml.safe_load(file.read_text())
        content["applications"][0]["args"]["families"] = broken
        file.write_text(yaml.safe_dump(content))
        source, found = mistakes(lambda: load(file))
        assert source == str(file)
        assert all(mistake.startswith("applications[0].args.families") for mistake in found)


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from([*MEASURED, "engine", "x"]), anything, st.sampled_from(["bf16", "int8", "tiny", "", "a b"]))
def test_any_value_in_a_catalogue_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-catalogue.yaml"
    variant = {"engine": {"model": "./x"}, **MEASURED, "routed": True, key: value}
    path.write_text(yaml.safe_dump({"families": {"m": {"variants": {name: variant}}}}), encoding="utf-8")
    try:
        found = with_catalogue({**ARGS, "catalogue": str(path)})
    except ConfigurationError as refused:
        source = refused.source
    else:
        assert parse(found).catalog.families
        return
    assert source == str(path)

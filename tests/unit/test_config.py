import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from economizer.config import (
    AUTOSCALING_POLICY,
    IMPORT_PATH,
    ServeFile,
    home,
    load,
    located,
    parse,
    parse_changed,
)
from economizer.engine.types import EngineSpec
from economizer.errors import ConfigurationError
from economizer.router.policies import POLICIES, Policy
from economizer.variants.types import EnergyCard, Family, PowerCard, Price, QualityCard, SpeedCard, Variant
from economizer.yaml_files import read_yaml
from hypothesis import given
from hypothesis import strategies as st

CHECKOUT = Path(__file__).parents[2]
Keys = tuple[str | int, ...]  # the path of a key
Write = Callable[[object], Path]


def minimal() -> dict[str, Any]:
    """The least that can be served."""
    variant = {"engine": {"command": ["server"]}, "context_tokens_max": 4096, "hardware": "cpu"}
    return {
        "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
        "families": {"m": {"full": "full", "variants": {"full": variant}}},
    }


def whole() -> dict[str, Any]:
    """One of everything."""
    config = minimal()
    config["policies"] = {"mine": {"cost": 1, "quality": 3}}
    config["gateway"] = {"replicas": 2, "queue_max": 0}
    family = config["families"]["m"]
    family |= {"policy": "mine", "aliases": ["gpt-4o"]}
    family["variants"]["full"] |= {
        "concurrency_max": 8,
        "features": ["chat"],
        "loras": ["french"],
        "replicas": {"min": 0, "max": 2, "initial": 1},
        "scaling": {"up_s": 1},
        "ray": {"num_gpus": 0.5, "accelerator_type": "H100", "resources": {"rack": 1}, "memory_gib": 1.5},
        "quality": {"score": 1.0, "low": 0.9, "source": "made up"},
        "speed": {"prefill_tokens_per_s": 1000, "decode_tokens_per_s": {1: 50}, "source": "made up"},
        "power": {"active_w": 100, "source": "made up"},
        "energy": {"prefill_j_per_token": 0.5, "decode_j_per_token": {1: 2}, "source": "made up"},
        "routed": True,
        "size_bytes": 163_000_000,
        "kl_mean": 0.018,
        "top1_agreement": 0.925,
    }
    return config


def serve_file(config: dict[str, Any] | None = None) -> dict[str, Any]:
    application = {
        "name": "economizer",
        "import_path": IMPORT_PATH,
        "autoscaling_policy": {"policy_function": AUTOSCALING_POLICY},
        "args": config or whole(),
    }
    return {"http_options": {"host": "127.0.0.1", "port": 8123}, "applications": [application]}


ABSENT = object()
ADMISSION = ("applications", 0, "args", "admission")
CLOSED = {"keys": "required"}


def changed(config: dict[str, Any], path: Keys, value: object) -> dict[str, Any]:
    """A copy with one key set, or taken away."""
    config = copy.deepcopy(config)
    at: Any = config
    for key in path[:-1]:
        at = at[key]
    if value is ABSENT:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return config


def mistakes(content: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        parse(content)
    return [str(mistake) for mistake in refused.value.mistakes]


def test_a_configuration_becomes_the_routers_frozen_types() -> None:
    variant = Variant(
        family="m",
        name="full",
        context_tokens_max=4096,
        concurrency_max=8,
        features=frozenset({"chat"}),
        loras=("french",),
        hardware="cpu",
        quality=QualityCard(score=1.0, low=0.9, source="made up"),
        speed=SpeedCard(prefill_tokens_per_s=1000.0, decode_tokens_per_s={1: 50.0}, source="made up"),
        power=PowerCard(active_w=100.0, source="made up"),
        energy=EnergyCard(prefill_j_per_token=0.5, decode_j_per_token={1: 2.0}, source="made up"),
        price=Price(usd_per_hour=0.1, source="made up"),
        replicas_min=0,
        replicas_max=2,
        routed=True,
        size_bytes=163_000_000,
        kl_mean=0.018,
        top1_agreement=0.925,
    )
    configuration = parse(whole())
    assert configuration.catalog.families == (
        Family(name="m", full="full", variants=(variant,), policy="mine", aliases=("gpt-4o",)),
    )
    assert configuration.all_policies == {**POLICIES, "mine": Policy(name="mine", weights={"cost": 1, "quality": 3})}
    assert (configuration.gateway.replicas, configuration.gateway.queue_max) == (2, 0)
    assert [config.ray.actor_options() for _, _, config in configuration.variant_configs()] == [
        {
            "num_cpus": 1.0,
            "num_gpus": 0.5,
            "memory": 1_610_612_736,
            "accelerator_type": "H100",
            "resources": {"rack": 1.0},
        }
    ]


def test_what_is_not_given_is_unknown_or_the_default() -> None:
    configuration = parse(minimal())
    (family,) = configuration.catalog.families
    assert (family.policy, family.aliases) == ("balanced", ())
    assert (family.full_variant.quality, family.full_variant.speed, family.full_variant.power) == (None, None, None)
    assert (family.full_variant.replicas_min, family.full_variant.replicas_max) == (1, 1)


@pytest.mark.parametrize("name", ["config.yaml", "config.gpu.yaml"])
def test_the_configurations_of_this_checkout_are_well_formed(name: str) -> None:
    assert load(CHECKOUT / "deploy" / name).configuration.catalog.families


VARIANT: Keys = ("families", "m", "variants", "full")


@pytest.mark.parametrize(
    ("path", "value", "mistake"),
    [
        (("families",), ABSENT, "families: (absent): must be given"),
        (("families",), {}, "families: {}: must name at least one family"),
        (("famillies",), {}, "famillies: {}: is not a known key here"),
        (("families", "m", "full"), ABSENT, "families.m.full: (absent): must be given"),
        (("families", "m", "full"), "int8", "families.m.full: 'int8': must be one of ['full']"),
        (("families", "m", "variants"), {}, "families.m.full: 'full': must be one of []"),
        (
            ("families", "m", "policy"),
            "dear",
            "families.m.policy: 'dear': must be one of ['balanced', 'cheap', 'fast', 'green', 'mine']",
        ),
        (
            ("families", "m", "aliases"),
            "gpt-4o",
            "families.m.aliases: 'gpt-4o': Input should be a valid tuple",
        ),
        (("policies", "mine"), {"cost": -1}, "policies.mine: {'cost': -1.0}: weights is {'cost': -1.0}: must be 0 or "),
        (("policies", "mine"), {"luck": 1}, "policies.mine: {'luck': 1.0}: weights is ['luck']: must be among ['carb"),
        (("prices", "cpu", "usd_per_hour"), "free", "prices.cpu.usd_per_hour: 'free': Input should be a valid number"),
        (
            ("prices", "cpu", "pue"),
            0.5,
            "prices.cpu: {'usd_per_hour': 0.1, 'source': 'made up', 'pue': 0.5}: pue is 0.",
        ),
        (
            (*VARIANT, "hardware"),
            "gpu",
            "families.m.variants.full.hardware: 'gpu': must be priced: one of ['cpu'] under",
        ),
        (
            (*VARIANT, "context_tokens_max"),
            0,
            "families.m.variants.full: 'full': context_tokens_max is 0: must be 1 or",
        ),
        (
            (*VARIANT, "context_tokens_max"),
            "4k",
            "families.m.variants.full.context_tokens_max: '4k': Input should be a",
        ),
        (
            (*VARIANT, "features"),
            ["psychic"],
            "families.m.variants.full: 'full': features is ['psychic']: must be amon",
        ),
        ((*VARIANT, "engine", "modle"), "x", "families.m.variants.full.engine.modle: 'x': is not a known key here"),
        (
            (*VARIANT, "routed"),
            False,
            "families.m.variants.full.routed: False: must be true: it is the family's full variant, which the others",
        ),
        (
            (*VARIANT, "top1_agreement"),
            1.5,
            "families.m.variants.full: 'full': top1_agreement is 1.5: must be between 0 and 1",
        ),
        (("catalogue",), "./c.yaml", "catalogue: './c.yaml': is not a known key here"),  # resolved before
        ((*VARIANT, "engine"), {}, "families.m.variants.full.engine: {}: model is '': must name a model, unless there"),
        ((*VARIANT, "quality", "scor"), 1, "families.m.variants.full.quality.scor: 1: is not a known key here"),
        (
            (*VARIANT, "replicas", "initial"),
            3,
            "families.m.variants.full.replicas: {'min': 0, 'max': 2, 'initial': 3}: initial is 3: must be between mi",
        ),
        ((*VARIANT, "ray", "num_gpus"), -1, "families.m.variants.full.ray: {'num_gpus': -1, 'accelerator_type': 'H100"),
        (("gateway", "queue_max"), -1, "gateway: {'replicas': 2, 'queue_max': -1}: queue_max is -1: must be 0 or more"),
        (("ledger",), {"window_s": 4.1}, "ledger: {'window_s': 4.1}: window_s is 4.1: must be between 0.1 and 4"),
        (("ledger",), {"report_s": 1.1}, "ledger: {'report_s': 1.1}: report_s is 1.1: must be between 0.05 and 1"),
        (("gateway",), [], "gateway: []: Input should be a dictionary or an instance of GatewaySettings"),
    ],
)
def test_a_mistake_is_named_by_its_keys_path_its_value_and_the_rule(path: Keys, value: object, mistake: str) -> None:
    found = mistakes(changed(whole(), path, value))
    assert len(found) == 1
    assert found[0].startswith(mistake)


@pytest.mark.parametrize("content", [None, [], "families", 3])
def test_what_is_no_mapping_is_refused_as_a_whole(content: object) -> None:
    (mistake,) = mistakes(content)
    assert mistake.startswith(f"(the whole file): {content!r}: Input should be a dictionary")


@pytest.mark.parametrize("name", ["m@int8", "m:8b", "m 8b", "m\n", ""])
def test_names_that_would_read_as_something_else_are_refused(name: str) -> None:
    family = whole()["families"]["m"]
    rule = "name must have no '@', ':' or space in it"
    assert [text.split(": ")[-1] for text in mistakes({**whole(), "families": {name: family}})] == [
        f"a family's {rule}"
    ]
    renamed = {**family, "full": name, "variants": {name: family["variants"]["full"]}}
    assert [text.split(": ")[-1] for text in mistakes({**whole(), "families": {"m": renamed}})] == [
        f"a variant's {rule}"
    ]


@pytest.mark.parametrize("name", ["m@full", "other@full", ""])
def test_aliases_and_adapters_cannot_look_like_pinned_variants(name: str) -> None:
    rule = "must have no '@' in it, and not be empty"
    assert mistakes(changed(whole(), ("families", "m", "aliases"), [name])) == [f"families.m.aliases: {name!r}: {rule}"]
    assert mistakes(changed(whole(), (*VARIANT, "loras"), [name])) == [f"families.m.variants.*.loras: {name!r}: {rule}"]


@pytest.mark.parametrize(
    ("aliases", "loras", "mistake"),
    [
        (["m"], [], "families.n.aliases: 'm': must be unique: m has that name already"),
        (["n"], [], "families.n.aliases: 'n': must be unique: n has that name already"),
        (["x", "x"], [], "families.n.aliases: 'x': must be unique: n has that name already"),
        (["gpt-4o"], [], "families.n.aliases: 'gpt-4o': must be unique: m has that name already"),
        ([], ["french"], "families.n.variants.*.loras: 'french': must be unique: m has that name already"),
        (["x"], ["x"], "families.n.variants.*.loras: 'x': must be unique: n has that name already"),
    ],
)
def test_two_models_cannot_have_one_name(aliases: list[str], loras: list[str], mistake: str) -> None:
    config = whole()
    other = copy.deepcopy(config["families"]["m"]) | {"aliases": aliases}
    other["variants"]["full"]["loras"] = loras
    assert mistakes({**config, "families": {**config["families"], "n": other}}) == [mistake]


def test_variants_of_one_family_may_serve_the_same_adapter() -> None:
    config = whole()
    variants = config["families"]["m"]["variants"]
    variants["int8"] = copy.deepcopy(variants["full"])
    assert parse(config).catalog.resolve("french@int8").variant == "int8"


def test_every_mistake_is_reported_at_once() -> None:
    config = whole()
    config["unknown"] = 1
    config["prices"]["cpu"]["usd_per_hour"] = -1
    config["gateway"]["idle_timeout_s"] = 0
    del config["families"]["m"]["full"]
    config["families"]["m"]["variants"]["full"]["quality"]["score"] = 2
    config["families"]["m"]["variants"]["full"]["concurrency_max"] = "many"
    assert {text.split(": ")[0] for text in mistakes(config)} == {
        "unknown",
        "prices.cpu",
        "gateway",
        "families.m.full",
        "families.m.variants.full.quality",
        "families.m.variants.full.concurrency_max",
    }


def test_every_rule_between_keys_that_is_broken_is_reported_at_once() -> None:
    config = whole()
    config["families"]["m"] |= {"full": "int8", "policy": "dear", "aliases": ["m"]}
    config["families"]["m"]["variants"]["full"]["hardware"] = "gpu"
    assert {text.split(": ")[0] for text in mistakes(config)} == {
        "families.m.full",
        "families.m.policy",
        "families.m.aliases",
        "families.m.variants.full.hardware",
    }


def test_a_long_value_is_cut() -> None:
    (mistake,) = mistakes(changed(whole(), (*VARIANT, "context_tokens_max"), "x" * 1000))
    assert len(mistake) < 250


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: object) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return written


def load_mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load(path)
    assert refused.value.source == str(path)
    return [str(mistake) for mistake in refused.value.mistakes]


def test_a_serve_file_says_where_it_listens_and_what_it_serves(write: Write) -> None:
    path = write(serve_file())
    assert load(path) == ServeFile(path=path, host="127.0.0.1", port=8123, configuration=parse(whole()))


@pytest.mark.parametrize(("host", "connect"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("10.0.0.7", "10.0.0.7")])
def test_an_address_that_means_all_is_reached_at_loopback(host: str, connect: str, write: Write) -> None:
    closed = changed(serve_file(), ADMISSION, CLOSED)
    assert load(write(changed(closed, ("http_options", "host"), host))).connect_host == connect


def test_without_http_options_it_listens_where_serve_does(write: Write) -> None:
    found = load(write(changed(changed(serve_file(), ADMISSION, CLOSED), ("http_options",), ABSENT)))
    assert (found.host, found.port) == ("0.0.0.0", 8000)


def test_beyond_loopback_nobody_is_let_in_without_a_key(write: Write) -> None:
    assert load_mistakes(write(changed(serve_file(), ("http_options", "host"), "0.0.0.0"))) == [
        "applications[0].args.admission.keys: 'optional': must be required where others than this machine can call "
        "(http_options.host), or host be 127.0.0.1"
    ]


def test_mistakes_in_a_serve_file_are_named_by_their_whole_path(write: Write) -> None:
    content = serve_file(changed(whole(), (*VARIANT, "hardware"), "gpu"))
    content["applications"].insert(0, {"name": "other", "import_path": "other:app"})
    assert load_mistakes(write(content)) == [
        "applications[1].args.families.m.variants.full.hardware: 'gpu': must be priced: one of ['cpu'] under prices"
    ]


@pytest.mark.parametrize(
    ("path", "value", "mistake"),
    [
        (("http_options", "port"), 0, "http_options.port: 0: must be a port, 1 to 65535"),
        (("http_options", "port"), "8000", "http_options.port: '8000': must be a port, 1 to 65535"),
        (("http_options", "port"), True, "http_options.port: True: must be a port, 1 to 65535"),
        (("http_options", "host"), 1, "http_options.host: 1: must be a string"),
        (("http_options",), [1], "http_options: [1]: must be a mapping"),
        (
            ("applications", 0, "autoscaling_policy"),
            ABSENT,
            "applications[0].autoscaling_policy: None: must be {policy_function: "
            f"'{AUTOSCALING_POLICY}'}}, since m@full may have more replicas",
        ),
        (
            ("applications", 0, "autoscaling_policy"),
            "default",
            "applications[0].autoscaling_policy: 'default': must be {policy_function: "
            f"'{AUTOSCALING_POLICY}'}}, since m@full may have more replicas",
        ),
        (
            ("applications",),
            [{"import_path": "other:app"}],
            "applications: [{'import_path': 'other:app'}]: must hold an application whose import_path is "
            + IMPORT_PATH,
        ),
        (("applications",), 3, f"applications: 3: must hold an application whose import_path is {IMPORT_PATH}"),
    ],
)
def test_what_is_wrong_around_the_application_is_named(path: Keys, value: object, mistake: str, write: Write) -> None:
    assert load_mistakes(write(changed(serve_file(), path, value))) == [mistake]


def test_a_fleet_that_does_not_scale_needs_no_autoscaling_policy(write: Write) -> None:
    assert load(write(changed(serve_file(minimal()), ("applications", 0, "autoscaling_policy"), ABSENT)))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice"),
        ("x: {a: {b: 1, b: 1}}", "the key 'b' is given twice"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("{[a]: b}", "a key must be a scalar"),
        ("a: 2024-13-01", "month must be in 1..12"),
        ("a: !!int x", "invalid literal for int()"),
        ("a: !!bool x", "'x'"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: *b", "found undefined alias"),
        ("[" * 500, "recursion"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, rule: str, write: Write) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_yaml(write(text))
    (mistake,) = refused.value.mistakes
    assert (mistake.path, mistake.value) == ("yaml", "'config.yaml'")
    assert mistake.rule.startswith("must be valid YAML: ")
    assert rule in mistake.rule


def test_a_key_may_come_again_in_another_mapping_and_through_a_merge(write: Write) -> None:
    assert read_yaml(write("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert load_mistakes(tmp_path / "none.yaml") == [f"file: {str(tmp_path / 'none.yaml')!r}: must exist"]
    assert load_mistakes(tmp_path)[0].startswith(f"file: {str(tmp_path)!r}: must be readable: ")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    assert "must be readable: 'utf-8' codec" in load_mistakes(tmp_path / "latin.yaml")[0]


def test_paths_of_an_engine_that_begin_with_a_dot_are_below_the_checkout() -> None:
    spec = EngineSpec(model="./models/m", python="./bin/python", command=("./server", "--x=./y", "word"))
    assert located(spec, Path("/base")) == EngineSpec(
        model="/base/./models/m".replace("/./", "/"),
        python="/base/bin/python",
        command=("/base/server", "--x=./y", "word"),
    )
    assert located(EngineSpec(model=".hidden"), Path("/base")).model == ".hidden"
    assert located(EngineSpec(model="org/model", python="python3"), Path("/base")).model == "org/model"


def test_home_is_the_checkout_or_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECONOMIZER_HOME", raising=False)
    assert home() == CHECKOUT
    monkeypatch.setenv("ECONOMIZER_HOME", str(tmp_path))
    assert home() == tmp_path


# Whatever stands anywhere in a configuration, it is read or its mistakes are named; what is read can be built.
def paths(content: object, here: Keys = ()) -> Iterator[Keys]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from paths(value, (*here, key))


NASTY: list[Any] = [None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "m@full", [], [None], {}]
NASTY += [{"x": 1}, {1: 2}, {None: None}, [["x"]], b"x", "\ud800", ABSENT]


def read_or_refused(content: Any) -> None:
    try:
        configuration = parse(content)
    except ConfigurationError as refused:
        named = refused.mistakes
    else:
        assert configuration.catalog.families
        assert configuration.all_policies
        assert [config.ray.actor_options() for _, _, config in configuration.variant_configs()]
        return
    assert named
    assert all(mistake.path and mistake.rule for mistake in named)


@pytest.mark.parametrize("path", [*paths(whole())], ids=lambda path: ".".join(map(str, path)))
def test_every_kind_of_value_at_every_key_is_read_or_named(path: Keys) -> None:
    for value in NASTY:
        read_or_refused(changed(whole(), path, value))


@pytest.mark.parametrize("path", [*paths(changed(serve_file(), ("applications", 0, "args"), 0))], ids=str)
def test_every_kind_of_value_in_a_serve_file_is_read_or_named(path: Keys, write: Write) -> None:
    for value in NASTY:
        try:
            text = yaml.safe_dump(changed(serve_file(minimal()), path, value))
            file = load(write(text))
        except (ConfigurationError, UnicodeEncodeError):
            continue
        assert isinstance(file.host, str)
        assert 1 <= file.port <= 65535


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.dates(), st.binary(max_size=3)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
NAMES = sorted({str(path[-1]) for path in paths(whole())})


@given(st.lists(st.tuples(st.sampled_from([*paths(whole())]), st.sampled_from([None, *NAMES]), anything), max_size=3))
def test_any_value_anywhere_is_read_or_named(changes: list[tuple[Keys, str | None, Any]]) -> None:
    config = whole()
    for path, key, value in changes:
        try:
            config = changed(config, path if key is None else (*path, key), value)
        except (KeyError, TypeError, IndexError, AttributeError):
            continue  # an earlier change took the place away
    read_or_refused(config)


@given(st.text(alphabet="ab:-?!&*<>{}[],|'\"#% \n\t01.~=", max_size=30))
def test_any_text_is_yaml_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        read_yaml(path)
    except ConfigurationError as refused:
        named = refused.mistakes
    else:
        return
    assert len(named) == 1


def test_a_user_config_is_laid_over_the_args() -> None:
    price = {"usd_per_hour": 9.0, "source": "a dear day"}
    quality = {"score": 0.5, "source": "measured again"}
    changes = {"prices": {"cpu": price}, "families": {"m": {"variants": {"full": {"quality": quality}}}}}
    expected = changed(changed(whole(), ("prices", "cpu"), price), ("families", "m", "variants", "full", "quality"), {})
    expected["families"]["m"]["variants"]["full"]["quality"] = {**quality, "low": 0.9}
    with pytest.raises(ConfigurationError) as refused:
        parse_changed(whole(), changes)  # the old interval stays, and is now above the score
    assert "low" in str(refused.value)
    quality["low"] = 0.4
    expected["families"]["m"]["variants"]["full"]["quality"] = quality
    assert parse_changed(whole(), changes) == parse(expected)


@pytest.mark.parametrize(
    ("user_config", "mistake"),
    [
        ([], "user_config: []: must be a mapping"),
        (
            {"gateway": {"queue_max": 1}},
            "user_config.gateway: {'queue_max': 1}: belongs in args: it takes a new gateway",
        ),
        (
            {"families": {"m": {"variants": {"int8": {}}}}},
            "user_config.families.m.variants.int8: 'int8': must be in args too: a new variant takes an engine",
        ),
        (
            {"families": {"m": {"variants": {"full": {"replicas": {"max": 9}}}}}},
            "user_config.families.m.variants.full.replicas: {'max': 9}: belongs in args: it takes a new engine",
        ),
    ],
)
def test_a_user_config_cannot_change_what_takes_a_new_process(user_config: Any, mistake: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_changed(whole(), user_config)
    assert [str(found) for found in refused.value.mistakes] == [mistake]


def test_a_file_is_read_with_its_gateways_user_config(write: Write) -> None:
    content = serve_file(whole())
    prices = {"cpu": {"usd_per_hour": 9.0, "source": "a dear day"}}
    content["applications"][0]["deployments"] = [{"name": "gateway", "user_config": {"prices": prices}}]
    assert load(write(yaml.safe_dump(content))).configuration.prices["cpu"].usd_per_hour == 9.0

"""YAML files read whole, and what is wrong in them named by its key's path, its value and the rule."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from economizer.errors import ConfigurationError, Mistake


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, which PyYAML would drop without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a scalar", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# What PyYAML does not turn into its own error: `2024-13-01`, `!!int x`, `!!bool x`, `!!timestamp x`, `!!set [x]`, and
# lists nested a thousand deep.
_YAML_LETS_THROUGH = (ValueError, KeyError, AttributeError, TypeError, RecursionError)


_REFUSED = object()


def read_yaml(path: Path, *, missing: Any = _REFUSED) -> Any:
    """The file's content; raises ConfigurationError naming the place when it is not YAML.

    So does a file that is not there, unless ``missing`` says what to answer then.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        if missing is not _REFUSED:
            return missing
        raise ConfigurationError(str(path), (mistake("file", path, "must exist"),)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), (mistake("file", path, f"must be readable: {error}"),)) from None
    except (yaml.YAMLError, *_YAML_LETS_THROUGH) as error:
        rule = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(str(path), (mistake("yaml", path.name, f"must be valid YAML: {rule}"),)) from None


def from_pydantic(error: ValidationError, prefix: str) -> Iterator[Mistake]:
    """Pydantic's findings in this tree's words."""
    for found in error.errors():
        location = tuple(str(part) for part in found["loc"] if part != "[key]")
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            message = "is not a known key here"
        elif found["type"] in ("missing", "missing_argument"):
            yield Mistake(path=join(prefix, location), value="(absent)", rule="must be given")
            continue
        yield mistake(join(prefix, location), found["input"], message)


def join(prefix: str, keys: tuple[str, ...]) -> str:
    """A key's path in words."""
    return ".".join(part for part in (prefix, *keys) if part) or "(the whole file)"


def mistake(path: str, value: object, rule: str) -> Mistake:
    """A mistake that shows its value, cut where that is long."""
    shown = repr(str(value) if isinstance(value, Path) else value)
    return Mistake(path=path, value=shown if len(shown) <= 80 else shown[:77] + "...", rule=rule)


def laid_over(below: Any, above: Any) -> Any:
    """Mappings are joined key by key; anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: laid_over(below.get(key), value) for key, value in above.items()}}
    return above

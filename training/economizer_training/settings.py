"""The one reader of this package's YAML files. No torch and no Ray here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from economizer_training.errors import TrainingError

SettingsT = TypeVar("SettingsT")


def load_settings(path: Path, kind: type[SettingsT]) -> SettingsT:
    """The settings in a YAML file; raises TrainingError naming the file, the key, the value and the rule."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse_settings(content, kind, str(path))


def parse_settings(content: Any, kind: type[SettingsT], where: str) -> SettingsT:
    """The settings in already-read YAML; raises TrainingError as ``load_settings`` does."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(str(part) for part in found["loc"]) or "(the whole file)"
        if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise TrainingError(f"{where}: {key}: is not a known key here") from None
        if found["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            raise TrainingError(f"{where}: {key}: must be given") from None
        if found["type"] == "value_error":  # of `require`, which names field, value and rule
            raise TrainingError(f"{where}: {key}: {found['msg'].removeprefix('Value error, ')}") from None
        raise TrainingError(f"{where}: {key}: {str(found['input'])[:80]!r}: {found['msg']}") from None

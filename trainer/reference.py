"""Finds what a setting names: "package.module:function", or "path/to/file.py:function" for code outside any package."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import InvalidConfig


def resolve(reference: str, setting: str) -> Callable[..., Any]:
    """The function. Raises InvalidConfig, naming the setting, if it cannot be found or its module fails to import."""
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise InvalidConfig(f"{setting} is '{reference}'; expected MODULE:FUNCTION or FILE.py:FUNCTION")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, name)
    except Exception as error:  # importing runs the user's code
        raise InvalidConfig(f"{setting} is '{reference}': {first_line(error)}") from error
    if not callable(found):
        raise InvalidConfig(f"{setting} is '{reference}', a {type(found).__name__}; expected a function")
    return found  # type: ignore[no-any-return]


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]

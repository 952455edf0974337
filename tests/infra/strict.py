"""What YAML and pydantic let pass and a manifest must not have: keys twice, and keys unknown."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that is said twice, where YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"'{key.value}' is said twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str) -> Any:
    """Plain values. Raises yaml.YAMLError, for a key said twice too."""
    return yaml.load(text, _OnceLoader)


def unknown_keys(model: type[BaseModel], said: Any, where: str = "") -> Iterator[str]:
    """Where in `said` a key stands that `model`, or a model in it, does not know."""
    if not isinstance(said, dict):
        return
    for key, value in said.items():
        place = f"{where}.{key}" if where else str(key)
        field = model.model_fields.get(key)
        if field is None:
            yield place
            continue
        for inner in _models_in(field.annotation):
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                at = f"{place}[{index}]" if isinstance(value, list) else place
                yield from unknown_keys(inner, item, at)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)

"""Command-line flags made from `JobSettings`, so that flags and YAML keys can't drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer

from ray_pipeline.settings import JobSettings


def with_settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` one flag per settings key; it receives those that were said as `flags`.

    `command` must take `flags: dict[str, Any]`; its other parameters stay as they are.
    """
    own = [
        parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "flags"
    ]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _flag_type(field.annotation),
                typer.Option(help=field.description, show_default=False),
            ],
        )
        for name, field in JobSettings.model_fields.items()
    ]

    def run(**said: Any) -> None:
        flags = {name: said.pop(name) for name in JobSettings.model_fields}
        command(**said, flags=flags)

    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _flag_type(annotation: Any) -> Any:
    kinds = [kind for kind in (*get_args(annotation), annotation) if kind in (bool, int, float)]
    if get_origin(annotation) is list:
        return list[str] | None
    return (kinds[0] if kinds else str) | None

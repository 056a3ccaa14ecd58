"""Settings that are checked: an unknown key is an error that offers the nearest one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lowpose.errors import LowposeError, did_you_mean


class Strict(BaseModel):
    """Base of every config class: unknown keys are refused and values cannot change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def validate(config_class: type[Strict], values: dict[str, Any], where: str) -> Any:
    """An instance of `config_class`. Raises: LowposeError with one line for the first problem."""
    try:
        return config_class.model_validate(values)
    except ValidationError as e:
        raise LowposeError(f"{where}: {first_problem(e, config_class)}") from None


def first_problem(error: ValidationError, config_class: type[BaseModel]) -> str:
    """One line for the first problem that pydantic found, with the nearest key where one is unknown."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(str(problem['loc'][-1]), _keys_at(config_class, problem['loc'][:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    # of a rule about a whole section the message names the value
    value = "" if problem["type"] == "value_error" and isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"'{key}'{value}: {message[0].lower()}{message[1:]}"


def _keys_at(config_class: type[BaseModel], path: tuple) -> list[str]:
    for part in path:
        annotation = config_class.model_fields[part].annotation if part in config_class.model_fields else None
        options = getattr(annotation, "__args__", ()) or (annotation,)
        nested = [a for a in options if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return []
        config_class = nested[0]
    return list(config_class.model_fields)

"""Checks that name the field and the rule."""

from __future__ import annotations

from typing import NoReturn

from ..errors import ConfigurationError


def refuse(where: str, problem: str) -> NoReturn:
    raise ConfigurationError(f"{where}: {problem}")


def text(where: str, field: str, value: object, longest: int) -> None:
    if not isinstance(value, str) or not value.strip():
        refuse(where, f"{field}={value!r} must be text that is not empty")
    elif len(value) > longest:
        refuse(where, f"{field} has {len(value)} characters; Stripe takes at most {longest}")


def one_of(where: str, field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        refuse(where, f"{field}={value!r} must be one of {', '.join(allowed)}")


def count(where: str, field: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        refuse(where, f"{field}={value!r} must be a whole number of at least {least}")

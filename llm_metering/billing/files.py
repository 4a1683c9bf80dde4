"""Catalogs in TOML: the same values under the same names, with the same checks."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from decimal import Decimal
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigurationError, MissingExtra
from .catalog import Catalog, Item, MeterSpec, Offer, ProductSpec
from .grants import AlertSpec, CreditSpec
from .guides import FLAT_FEE, PAY_AS_YOU_GO, FlatFeeWithOverages, PayAsYouGo
from .prices import PriceSpec, Tier

_T = TypeVar("_T")
_GUIDES: Mapping[str, type[Catalog]] = {PAY_AS_YOU_GO: PayAsYouGo, FLAT_FEE: FlatFeeWithOverages}
_PARTS = ("meters", "products", "prices", "offers", "credits", "alerts", *_GUIDES)


def load_catalog(path: str | os.PathLike[str]) -> Catalog:
    """Read a catalog from a TOML file; `ConfigurationError` names the file, the place and the rule."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        raise ConfigurationError(f"{path} cannot be read: {reason}") from exc
    try:
        return parse_catalog(text)
    except ConfigurationError as exc:
        if isinstance(exc, MissingExtra):
            raise
        raise ConfigurationError(f"{path}: {exc}") from exc


def parse_catalog(text: str) -> Catalog:
    """Read a catalog from TOML text.

    Tables `[[meters]]`, `[[products]]`, `[[prices]]`, `[[offers]]`, `[[credits]]` and `[[alerts]]` have the
    fields of `MeterSpec`, `ProductSpec`, `PriceSpec`, `Offer`, `CreditSpec` and `AlertSpec`;
    `[pay-as-you-go]` and `[flat-fee]` the arguments of the guides.
    Amounts may be numbers or text; both are read exactly.
    """
    document = _parse_toml(text)
    _check_names("the catalog", document, _PARTS)
    catalog = Catalog(
        meters=_each(document, "meters", lambda d, at: _make(MeterSpec, d, at)),
        products=_each(document, "products", lambda d, at: _make(ProductSpec, d, at)),
        prices=_each(document, "prices", _price),
        offers=_each(document, "offers", _offer),
        credits=_each(document, "credits", lambda d, at: _make(CreditSpec, d, at)),
        alerts=_each(document, "alerts", lambda d, at: _make(AlertSpec, d, at)),
    )
    for name, guide in _GUIDES.items():
        if name in document:
            catalog = catalog | _guide(guide, _table(document[name], f"[{name}]"), f"[{name}]")
    return catalog


def _parse_toml(text: str) -> dict[str, Any]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml: Any = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise MissingExtra(name, "cli") from exc
    try:
        document: dict[str, Any] = toml.loads(text, parse_float=Decimal)
    except toml.TOMLDecodeError as exc:
        raise ConfigurationError(f"this is not TOML: {exc}") from exc
    return document


def _each(document: dict[str, Any], name: str, make: Callable[[dict[str, Any], str], _T]) -> tuple[_T, ...]:
    tables = document.get(name, [])
    if not isinstance(tables, list):
        raise ConfigurationError(f"{name} is a list of tables; write [[{name}]]")
    return tuple(make(_table(table, f"{name}[{i}]"), f"{name}[{i}]") for i, table in enumerate(tables))


def _price(document: dict[str, Any], at: str) -> PriceSpec:
    tiers = document.get("tiers", [])
    if not isinstance(tiers, list):
        raise ConfigurationError(
            f"{at}.tiers must be a list of tables such as {{ up_to = 1000, unit_amount = 0 }}"
        )
    made = [_tier(_table(tier, f"{at}.tiers[{i}]"), f"{at}.tiers[{i}]") for i, tier in enumerate(tiers)]
    return _make(PriceSpec, {**document, "tiers": tuple(made)}, at)


def _tier(document: dict[str, Any], at: str) -> Tier:
    if document.get("up_to") == Decimal("Infinity"):
        document = {**document, "up_to": "inf"}  # TOML's own inf
    return _make(Tier, document, at)


def _offer(document: dict[str, Any], at: str) -> Offer:
    items = document.get("items", [])
    if not isinstance(items, list):
        raise ConfigurationError(f"{at}.items must be a list of price keys or of tables with quantities")
    made = tuple(_item(item, f"{at}.items[{i}]") for i, item in enumerate(items))
    return _make(Offer, {**document, "items": made}, at)


def _item(item: Any, at: str) -> Item:
    return Item(item) if isinstance(item, str) else _make(Item, _table(item, at), at)


def _guide(guide: type[Catalog], document: dict[str, Any], at: str) -> Catalog:
    _check_names(at, document, tuple(signature(guide).parameters))
    return guide(**document)


def _make(kind: Callable[..., _T], document: dict[str, Any], at: str) -> _T:
    known = fields(kind)  # type: ignore[arg-type]
    _check_names(at, document, tuple(f.name for f in known))
    for f in known:
        if f.default is MISSING and f.default_factory is MISSING and f.name not in document:
            raise ConfigurationError(f"{at} lacks {f.name}")
    return kind(**document)


def _table(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{at} must be a table, not {value!r}")
    return value


def _check_names(at: str, document: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in document:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ConfigurationError(f"{at} has no {name}; {hint}")

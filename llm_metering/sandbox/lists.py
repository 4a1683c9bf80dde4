"""Lists with cursors, metadata and `expand`, the same for every resource."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from .errors import Refusal, invalid, missing_resource
from .store import Doc
from .world import Call

Render = Callable[[Call, Doc], Doc]


def page(
    call: Call,
    kind: str,
    url: str,
    render: Render,
    keep: Callable[[Doc], bool] = lambda doc: True,
) -> Doc:
    """One page of a kind's documents, newest first."""
    limit = call.params.get("limit", 10)
    after, before = call.params.get("starting_after"), call.params.get("ending_before")
    for name, cursor in (("starting_after", after), ("ending_before", before)):
        if cursor and call.store.get(call.account, kind, cursor) is None:
            raise missing_resource(kind, cursor, name)
    docs: Iterator[Doc]
    if before:
        docs = call.store.oldest_first(call.account, kind, after=before)
    else:
        docs = call.store.newest_first(call.account, kind, after=after or None)
    found = list(islice((doc for doc in docs if not doc.get("deleted") and keep(doc)), limit + 1))
    shown = found[:limit]
    if before:
        shown.reverse()
    return listed([render(call, doc) for doc in shown], url, has_more=len(found) > limit)


def page_of(call: Call, items: list[Doc], url: str) -> Doc:
    """One page of items that are at hand in their order, each with an id."""
    limit = call.params.get("limit", 10)
    ids = [item["id"] for item in items]
    after, before = call.params.get("starting_after"), call.params.get("ending_before")
    for name, cursor in (("starting_after", after), ("ending_before", before)):
        if cursor and cursor not in ids:
            raise invalid(f"No such object: '{cursor}'", name, "resource_missing")
    if before:
        end = ids.index(before)
        start = max(0, end - limit)
        return listed(items[start:end], url, has_more=start > 0)
    start = ids.index(after) + 1 if after else 0
    return listed(items[start : start + limit], url, has_more=len(items) > start + limit)


def listed(items: list[Doc], url: str, *, has_more: bool = False) -> Doc:
    return {"object": "list", "data": items, "has_more": has_more, "url": url}


def created_within(created: int, wanted: Any) -> bool:
    """Whether a time fits the `created` filter of a list."""
    if wanted is None:
        return True
    if isinstance(wanted, int):
        return created == wanted
    checks = {"gt": int.__gt__, "gte": int.__ge__, "lt": int.__lt__, "lte": int.__le__}
    return all(checks[name](created, edge) for name, edge in wanted.items())


def public(doc: Mapping[str, Any]) -> Doc:
    """A document without the sandbox's own keys."""
    return {name: value for name, value in doc.items() if not name.startswith("_")}


def merged_metadata(old: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Metadata after an update: an empty value removes its key, an empty map removes all."""
    if not changes:
        return {}
    return {key: value for key, value in {**old, **changes}.items() if value != ""}


def unset(value: Any) -> Any:
    """An empty string unsets a field."""
    return None if value == "" else value


Lookup = Callable[[str, Doc], Any]
"""Given the last name of a path and the object that holds it, what to put there: None for nothing."""


def expand(answer: Doc, paths: Iterable[str], lookup: Lookup) -> None:
    """Replace ids by their objects, in place, as `expand` asks."""
    for path in paths:
        steps = path.split(".")
        if len(steps) > 4 + (steps[0] == "data"):
            raise invalid(f"You cannot expand more than 4 levels of a property. Property: {path}", "expand")
        _expand(answer, steps, lookup)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def not_expandable(name: str) -> Refusal:
    return invalid(
        f"This property cannot be expanded ({name}). You may want to try expanding another property.",
        "expand",
    )


_ON_REQUEST = frozenset({"tiers", "subscriptions"})
"""What an answer leaves out unless it is asked for."""


def _expand(node: Any, steps: list[str], lookup: Lookup) -> None:
    if isinstance(node, list):
        for item in node:
            _expand(item, steps, lookup)
        return
    if not isinstance(node, dict):
        return
    name, rest = steps[0], steps[1:]
    if name not in node and name not in _ON_REQUEST:
        raise not_expandable(name)
    value = node.get(name)
    if isinstance(value, str) or name not in node or _ids(value):
        value = lookup(name, node)
        if value is not None:
            node[name] = value
    elif not rest and isinstance(value, dict) and "object" not in value:
        raise not_expandable(name)
    if rest:
        _expand(value, rest, lookup)

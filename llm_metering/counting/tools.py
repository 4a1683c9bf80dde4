"""Tools and schemas as OpenAI puts them into a prompt: TypeScript types, and JSON under a heading.

OpenAI does not publish it; this form was found by matching reported prompt tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._values import dataclass
from ..fields import get, items

MAX_DEPTH = 32
MAX_TYPES = 5000
"""A schema whose references multiply is cut off here."""


@dataclass(frozen=True, slots=True)
class Style:
    """What the renderer of an API writes."""

    titles: bool
    """Titles and defaults, as comments."""
    indent: int
    """Blanks for each level of nested objects."""
    comment_depth: int
    """Descriptions are written above this depth."""


CHAT_STYLE = Style(titles=False, indent=2, comment_depth=1)
RESPONSES_STYLE = Style(titles=True, indent=0, comment_depth=MAX_DEPTH)


@dataclass(frozen=True, slots=True)
class Function:
    """A function that is offered to the model."""

    name: str
    description: str
    parameters: Any


def functions_of(tools: Any) -> tuple[list[Function], list[str]]:
    """The functions in a list of tools, in any provider's spelling, and the kinds of hosted tools."""
    functions: list[Function] = []
    hosted: list[str] = []
    for tool in items(tools):
        several = items(get(tool, "functionDeclarations") or get(tool, "function_declarations"))
        for each in several or (tool,):
            function = _function(each)
            if function is not None:
                functions.append(function)
            else:
                hosted.append(str(get(tool, "type") or "tool"))
    return functions, hosted


def as_typescript(functions: list[Function], style: Style) -> str:
    """A TypeScript namespace with a type for each function."""
    lines = ["namespace functions {", ""]
    for function in functions:
        if function.description:
            lines.append(f"// {function.description}")
        if not get(function.parameters, "properties"):
            lines += [f"type {function.name} = () => any;", ""]
            continue
        title = get(function.parameters, "title") if style.titles else None
        lines.append(f"type {function.name} = (_: {f'// {title}{chr(10)}' if title else ''}{{")
        lines.append(_Renderer(style, function.parameters).properties(function.parameters, 0))
        lines += ["}) => any;", ""]
    lines.append("} // namespace functions")
    return "\n".join(lines)


def as_json(functions: list[Function]) -> str:
    """The functions as JSON, which is how other providers are taken to see them."""
    return json.dumps(
        [{"name": f.name, "description": f.description, "parameters": f.parameters} for f in functions],
        ensure_ascii=False,
        default=str,
    )


def schema_text(name: str, description: str, schema: Any) -> str:
    """A response format's schema under its heading, without what the constrained decoder takes over."""
    lines = ["# Response Formats", "", f"## {name}", ""]
    if description:
        lines.append(f"// {description}")
    lines.append(
        json.dumps(_without_rules(schema, 0), separators=(",", ":"), ensure_ascii=False, default=str)
    )
    return "\n".join(lines)


def _function(tool: Any) -> Function | None:
    inner = get(tool, "function") or get(tool, "toolSpec") or get(tool, "tool_spec") or tool
    kind = get(tool, "type")
    name = get(inner, "name")
    if not isinstance(name, str) or (isinstance(kind, str) and kind not in ("function", "custom")):
        return None
    schema = get(inner, "parameters") or get(inner, "input_schema") or get(inner, "inputSchema")
    schema = get(schema, "json") or schema
    description = get(inner, "description")
    return Function(name, description if isinstance(description, str) else "", schema)


class _Renderer:
    """Writes one function's parameters; holds the root, for references into it."""

    def __init__(self, style: Style, root: Any) -> None:
        self._style = style
        self._root = root
        self._left = MAX_TYPES

    def properties(self, schema: Any, depth: int) -> str:
        lines: list[str] = []
        required = get(schema, "required")
        required = set(map(str, items(required)))
        properties = get(schema, "properties")
        for name, value in properties.items() if isinstance(properties, Mapping) else ():
            value = self._resolved(value)
            if self._style.titles and get(value, "title"):
                lines.append(f"// {get(value, 'title')}")
            if get(value, "description") and depth < self._style.comment_depth:
                lines.append(f"// {get(value, 'description')}")
            default = ""
            if self._style.titles and isinstance(value, Mapping) and "default" in value:
                default = f" // default: {json.dumps(value['default'], default=str)}"
            mark = "" if name in required else "?"
            lines.append(f"{name}{mark}: {self._type(value, depth)},{default}")
        pad = " " * (self._style.indent * depth)
        return "\n".join(pad + line for line in lines)

    def _type(self, schema: Any, depth: int) -> str:
        schema = self._resolved(schema)
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0 or not isinstance(schema, Mapping):
            return "any"
        if "enum" in schema:
            return " | ".join(json.dumps(e, default=str) for e in items(schema["enum"]))
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                return " | ".join(self._type(each, depth + 1) for each in items(schema[key]))
        kind = schema.get("type")
        if isinstance(kind, (list, tuple)):
            return " | ".join(self._type({**schema, "type": each}, depth + 1) for each in kind)
        if kind == "array":
            return (self._type(schema["items"], depth) if schema.get("items") else "any") + "[]"
        if kind == "object":
            if not schema.get("properties"):
                return "object"
            return "{\n" + self.properties(schema, depth + 1) + "\n}"
        return _PLAIN_TYPES.get(str(kind), "any")

    def _resolved(self, schema: Any) -> Any:
        """What a `$ref` into the same schema points at."""
        reference = get(schema, "$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target = self._root
        for part in reference[2:].split("/"):
            target = get(target, part)
        rest = {k: v for k, v in schema.items() if k != "$ref"}
        return {**target, **rest} if isinstance(target, Mapping) and "$ref" not in target else rest


def _without_rules(schema: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        return None
    if isinstance(schema, (list, tuple)):
        return [_without_rules(each, depth + 1) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: {k: _without_rules(v, depth + 1) for k, v in value.items()}
        if name in ("properties", "$defs") and isinstance(value, Mapping)
        else _without_rules(value, depth + 1)
        for name, value in schema.items()
        if name not in ("required", "additionalProperties")
    }


_PLAIN_TYPES = {
    "string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null",
}  # fmt: skip

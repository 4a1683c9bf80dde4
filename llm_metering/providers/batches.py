"""Result files of batches: one line of JSON for each call that was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from .._values import dataclass
from ..fields import dig, get, is_object, items, text
from ..usage import Reading
from .answers import read_response

_ANSWERS = (
    ("response", "body"),  # OpenAI, Azure, Groq, Together, Mistral
    ("result", "message"),  # Anthropic
    ("response",),  # Gemini, Vertex
    ("modelOutput",),  # Bedrock
    ("batch_result", "response", "chat_get_completion"),  # xAI
)
"""Where a line holds the answer."""
_NAMES = (("custom_id",), ("key",), ("recordId",), ("metadata", "key"), ("batch_request_id",))
_BOM = "\ufeff"
_FAILED = frozenset(("errored", "canceled", "expired"))


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One call of a batch."""

    name: str | None
    """What the caller named it: `custom_id`, `key` or `recordId`; None where there is no name (Vertex)."""
    id: str
    """The same whenever the file is read: record it under this, and it is billed once."""
    reading: Reading


def read_batch(lines: Iterable[Any] | str | bytes, *, batch: str | None = None) -> Iterator[BatchResult]:
    """Read the results of a batch as OpenAI, Anthropic, Gemini, Mistral, Bedrock and their like write them.

    Calls that failed or were not made are left out; a line that cannot be read gives a reading with a
    `problem`. Costs memory for one line at a time.

        for result in read_batch(client.files.content(batch.output_file_id).text):
            metering.record(result.reading, id=result.id, customer=customers[result.name])

    Args:
        lines: The file's lines, or all of its text; or results as an SDK gives them, such as Anthropic's
            `client.messages.batches.results(id)`.
        batch: The job's id. Some lines have no id of their own (Bedrock's of Titan, Llama and Nova), and are
            told apart by what they hold: where a job runs twice and gives the same, only this tells.
    """
    if isinstance(lines, str):
        lines = lines.split("\n")  # JSON may hold what `splitlines` takes for a line's end
    elif isinstance(lines, bytes):
        lines = lines.split(b"\n")
    for number, line in enumerate(lines):
        if not isinstance(line, (str, bytes)) or line.strip():
            found = _result(line, number, batch)
            if found is not None:
                yield found


def _result(line: Any, number: int, batch: str | None) -> BatchResult | None:
    try:
        row = json.loads(line.lstrip(_BOM)) if isinstance(line, str) else line
        row = json.loads(row) if isinstance(row, bytes) else row
    except (ValueError, RecursionError):
        problem = "a line of the batch is not JSON, or was cut short"
        return BatchResult(None, f"batch-{_fingerprint(line, number, batch)}", Reading(problem=problem))
    answer = _answer(row)
    if answer is None:
        return None
    name = next((found for path in _NAMES if (found := text(dig(row, path))) is not None), None)
    reading = read_response(answer)
    own = text(get(row, "id")) or reading.response_id or text(dig(row, ("response", "request_id")))
    own = own or _fingerprint(line, number, batch)
    return BatchResult(name, f"batch-{own}", reading)


def _fingerprint(line: Any, number: int, batch: str | None) -> str:
    """What tells a line without an id from those of other files: callers name their calls alike in each."""
    import hashlib  # few need it

    content = line if isinstance(line, (str, bytes)) else repr(line)
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    of = b"" if batch is None else batch.encode("utf-8", "surrogatepass") + b"\n"
    return f"{number}-{hashlib.sha256(of + content.strip()).hexdigest()[:32]}"


def _answer(row: Any) -> Any:
    if get(row, "error") is not None or dig(row, ("result", "type")) in _FAILED:
        return None
    status = dig(row, ("response", "status_code"))
    if type(status) is int and not 200 <= status < 300:
        return None
    if isinstance(row, dict) and items(row.get("predictions")):
        return row  # Vertex' embeddings
    return next((found for path in _ANSWERS if is_object(found := dig(row, path)) and found), None)

"""Stripe's asynchronous error reports: what it refused after it had accepted it, and why.

A webhook brings only an event's id; what it says is fetched here. The same events can be listed for 30 days,
so that a webhook that got lost is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from .._redact import one_line
from .._values import dataclass
from ..errors import StripeUnavailable
from .reading import Object, StripeReader

ERROR_REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"
TYPES = (ERROR_REPORT, NO_METER)


@dataclass(frozen=True, slots=True)
class ReportedError:
    """Meter events that were refused for one cause."""

    code: str
    """Such as meter_event_customer_not_found; the list is open."""
    message: str
    count: int
    identifiers: tuple[str, ...]
    """Samples; there may be more than are named."""


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """One report about one meter, or about event names without a meter."""

    id: str
    type: str
    meter_id: str | None
    summary: str
    errors: tuple[ReportedError, ...]
    started_at: float | None
    """When the events were checked that it tells of: from here, Unix seconds."""
    ended_at: float | None

    @property
    def count(self) -> int:
        return sum(error.count for error in self.errors)


class ErrorEvents:
    """Reads error reports.

    Args:
        reader: Asks Stripe; its key may need the right to read events.
    """

    def __init__(self, reader: StripeReader) -> None:
        self._reader = reader

    def fetch(self, event_id: str) -> ErrorReport:
        """What an event says.

        Raises:
            StripeUnavailable: There is no such event, it is no error report, or Stripe cannot be asked.
        """
        found = self._reader.get(f"/v2/core/events/{quote(event_id, safe='')}")
        if found.get("type") not in TYPES:
            raise StripeUnavailable(one_line(f"{event_id} is a {found.get('type')}"), code="not_a_report")
        return _report(found)

    def since(self, at: float) -> list[str]:
        """The ids of the reports that were made since a time, the newest first."""
        moment = datetime.fromtimestamp(at, timezone.utc).isoformat().replace("+00:00", "Z")
        page: str | None = None
        found: list[str] = []
        for _ in range(_MAX_PAGES):
            types = {f"types[{n}]": name for n, name in enumerate(TYPES)}
            query = {"limit": 100, **types, "created[gte]": moment, "page": page}
            answer = self._reader.get("/v2/core/events", query)
            found += [item["id"] for item in _objects(answer.get("data")) if isinstance(item.get("id"), str)]
            page = _cursor(answer.get("next_page_url"))
            if page is None:
                break
        return found


_MAX_PAGES = 20
_MAX_SAMPLES = 100


def _report(event: Object) -> ErrorReport:
    data = _object(event.get("data"))
    reason = _object(data.get("reason"))
    related = _object(event.get("related_object"))
    meter_id = related.get("id")
    return ErrorReport(
        id=str(event.get("id")),
        type=str(event.get("type")),
        meter_id=meter_id if isinstance(meter_id, str) else None,
        summary=one_line(str(data.get("developer_message_summary") or "no summary")),
        errors=tuple(_error(item) for item in _objects(reason.get("error_types"))),
        started_at=_moment(data.get("validation_start")),
        ended_at=_moment(data.get("validation_end")),
    )


def _error(item: Mapping[str, Any]) -> ReportedError:
    samples = list(_objects(item.get("sample_errors")))[:_MAX_SAMPLES]
    messages = [str(sample.get("error_message") or "") for sample in samples]
    # Older samples name the request, not the event; those name nothing of ours.
    named = [_object(sample.get("request")).get("identifier") for sample in samples]
    count = item.get("error_count")
    return ReportedError(
        code=one_line(str(item.get("code") or "unknown"), 100),
        message=one_line(next(filter(None, messages), "")),
        count=count if isinstance(count, int) and count >= 0 else len(samples),
        identifiers=tuple(name for name in named if isinstance(name, str) and name),
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _moment(value: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _cursor(url: Any) -> str | None:
    from urllib.parse import parse_qs, urlsplit

    return parse_qs(urlsplit(url).query).get("page", [None])[0] if isinstance(url, str) else None

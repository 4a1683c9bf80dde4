"""Usage alerts: a webhook once a customer's usage of a meter reaches a threshold. They never limit usage.

Those of a catalog are for every customer, and are set up by `apply`; `create_alert` makes one for a single
customer, too. An alert fires once in a customer's life, and counts only what is reported after it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import BillingError
from .facts import Fact, Found
from .grants import AlertSpec
from .refusals import doing

if TYPE_CHECKING:
    from stripe import StripeClient

_TRIES = 20


@dataclass(frozen=True, slots=True)
class Alert:
    """A usage alert as it stands."""

    id: str
    title: str
    status: str
    meter: str
    """Event name."""
    threshold: int
    customer: str | None
    """None for every customer."""
    created: bool = False
    """Whether this call made it; False if it was there already."""


def create_alert(client: StripeClient, alert: AlertSpec, *, customer: str | None = None) -> Alert:
    """Make an alert, for one customer or for all; the same one that is there is returned.

    It does not limit usage: a webhook `billing.alert.triggered` is sent, and the usage goes on.
    """
    with doing(f"making the alert {alert.title!r}"):
        names = _meters(client)
        meter = next((known for known, name in names.items() if name == alert.meter), None)
        if meter is None:
            raise BillingError(f"the account has no meter {alert.meter!r}; apply the catalog that has it")
        found = [_alert(raw, names) for raw in _raw_alerts(client)]
        wanted = (alert.title, alert.meter, alert.threshold, customer, "active")
        for one in found:
            if (one.title, one.meter, one.threshold, one.customer, one.status) == wanted:
                return one
        made = _create(client, alert_params(alert, meter, customer))
        return _alert(made, names, created=True)


def find_alerts(client: StripeClient) -> tuple[Alert, ...]:
    """All alerts that are not archived, newest first."""
    with doing("looking for alerts"):
        names = _meters(client)
        return tuple(_alert(raw, names) for raw in _raw_alerts(client))


def archive_alert(client: StripeClient, id: str) -> None:
    """End an alert for good; Stripe does not show it any more."""
    with doing(f"archiving alert {id}"):
        client.v1.billing.alerts.archive(id)


def found_alerts(client: StripeClient, titles: set[str], names: dict[str, str]) -> Iterator[Found]:
    """The alerts of a catalog, by title, among those for every customer."""
    missing = set(titles)
    if not missing:
        return
    for raw in _raw_alerts(client):
        one = _alert(raw, names)
        if one.customer is not None or one.title not in missing:
            continue
        missing.remove(one.title)
        fixed: dict[str, Fact] = {"meter": one.meter, "threshold": one.threshold}
        yield Found("alert", one.title, one.id, one.status == "active", ours=True, fixed=fixed, editable={})


def alert_params(alert: AlertSpec, meter: str, customer: str | None = None) -> dict[str, Any]:
    """The body of the call that creates an alert. `meter` is Stripe's id."""
    threshold: dict[str, Any] = {"meter": meter, "gte": alert.threshold, "recurrence": "one_time"}
    if customer is not None:
        threshold["filters"] = [{"type": "customer", "customer": customer}]
    return {"alert_type": "usage_threshold", "title": alert.title, "usage_threshold": threshold}


def keep_first(client: StripeClient, alert: AlertSpec, made: Any) -> str:
    """The alert that stays where another run has made the same one in the same moment; its id.

    Whoever looks between the end of an old alert and the making of the new one makes one, too. Both look
    once more, keep the one that was made first, and end the other: it would tell everything twice.
    """
    wanted = (alert.title, made.usage_threshold.meter, alert.threshold)
    same = [
        raw.id
        for raw in _raw_alerts(client)
        if (raw.title, raw.usage_threshold.meter, int(raw.usage_threshold.gte)) == wanted
        and not getattr(raw.usage_threshold, "filters", None)
    ]
    for extra in same[:-1]:
        _end(client, extra)
    return str(same[-1] if same else made.id)


def _end(client: StripeClient, id: str) -> None:
    """Stripe refuses it the second time, so another run that was faster is no failure."""
    import stripe

    try:
        client.v1.billing.alerts.archive(id)
    except stripe.InvalidRequestError:
        if client.v1.billing.alerts.retrieve(id).status != "archived":
            raise


def _raw_alerts(client: StripeClient) -> Iterator[Any]:
    page = client.v1.billing.alerts.list({"limit": 100})
    return (raw for raw in page.auto_paging_iter() if raw.status != "archived")


def _meters(client: StripeClient) -> dict[str, str]:
    return {m.id: m.event_name for m in client.v1.billing.meters.list({"limit": 100}).auto_paging_iter()}


def _alert(raw: Any, names: dict[str, str], *, created: bool = False) -> Alert:
    threshold = raw.usage_threshold
    meter = threshold.meter if isinstance(threshold.meter, str) else threshold.meter.id
    filters = getattr(threshold, "filters", None) or ()
    return Alert(
        id=raw.id,
        title=raw.title,
        status=raw.status,
        meter=names.get(meter, meter),
        threshold=int(threshold.gte),
        customer=next((one.customer for one in filters if getattr(one, "customer", None)), None),
        created=created,
    )


def _create(client: StripeClient, params: dict[str, Any]) -> Any:
    """Everyone who is about to make the same alert uses the same key. For a day Stripe replays its answer,
    also once that alert was archived; the next key is taken then."""
    for salt in range(_TRIES):
        what = json.dumps([params, salt], sort_keys=True)
        once: Any = {"idempotency_key": "llm_metering-" + hashlib.sha256(what.encode()).hexdigest()[:48]}
        made = client.v1.billing.alerts.create(cast("Any", params), once)
        if client.v1.billing.alerts.retrieve(made.id).status != "archived":
            return made
    raise BillingError("it was archived too often today; give it another title")

"""Where no source settles what Stripe does, the sandbox makes one choice. Each has a switch here.

The first part holds the open questions and assumptions (mark A) of the contract; the second the pace at
which the sandbox plays Stripe's slow parts. `docs/sandbox.md` lists them with the rules they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What the sandbox assumes. The defaults are the contract's choices."""

    strict_v1: bool = False
    """v1 refuses payload problems (no customer, no value, bad value, unknown customer) at once, instead of
    finding them later. Unknown on real Stripe, so clients must survive both."""
    clash_answer: Literal["409", "429"] = "409"
    """What a second v1 event of one customer and meter gets while the first is being created: 409 without a
    code (seen by a third party), or 429 `lock_timeout` (the rate-limit page)."""
    deactivated_meter: Literal["no_active_meter", "archived_meter"] = "no_active_meter"
    """What v1 says of a deactivated meter: the message for no meter at all, or code `archived_meter`."""
    identifier_scope: Literal["account", "event_name", "customer"] = "account"
    """Within what an event's identifier is unique, beside account and mode."""
    identifier_window_s: int = 86_400
    """How long an identifier stays taken; Stripe says "at least 24 hours"."""
    value_integer_digits: int = 15
    """Digits before the point that an event's value may have."""
    value_decimal_digits: int = 12
    """Digits after the point that an event's value may have."""
    exponent_values: bool = False
    """Whether a value such as 1e-05, which careless clients make of floats, is a number."""
    v2_refuses_decimals: bool = False
    """v2 takes whole values only, as its error table's wording suggests."""
    v2_refuses_negatives: bool = False
    """v2 takes positive values only, as its error table's wording suggests."""
    package_quantity: Literal["raw", "divided"] = "raw"
    """What the line of a package price shows as quantity: the usage, or the number of packages."""
    flat_lines: Literal["when_set", "when_not_zero", "always"] = "when_set"
    """When a reached tier gets a line for its flat amount: when one was set, 0 included (seen on a real
    invoice); when it is above 0; for every tier."""
    summary_order: Literal["newest_first", "oldest_first"] = "newest_first"
    """Order of event summaries."""
    empty_summary: bool = True
    """A summary without a window is one item of 0 where nothing was used, instead of an empty list."""
    empty_windows: bool = False
    """Event summaries list hours and days without usage, too."""
    dimension_keys: int | None = None
    """Payload keys allowed beside customer and value, None for any number. The limit is not published."""
    preview_credits: bool = True
    """Previews show the credits that would be applied. Real ones are applied at finalisation."""
    trial_usage: Literal["free", "billed"] = "free"
    """What becomes of usage during a trial: never billed, or billed when the trial ends."""
    idempotency_clash_type: Literal["idempotency_error", "invalid_request_error"] = "idempotency_error"
    """Error type of a 409 for an idempotency key that is still running."""
    v2_idempotency_s: int = 30 * 86_400
    """How long v2 remembers an idempotency key."""
    deactivate_twice: Literal["refuse", "accept"] = "refuse"
    """Deactivating an inactive meter, or reactivating an active one."""

    aggregation_delay_s: float = 0.0
    """Seconds until an accepted event shows in summaries and invoices; 54 were measured on real Stripe."""
    meter_event_latency_s: float = 0.0
    """Seconds that a meter event call takes. Above 0, calls of one customer and meter can clash."""
    rate_limits: bool = False
    """Answer 429 beyond Stripe's published limits (25 requests/s in test mode)."""
    error_window_s: float = 10.0
    """Seconds of unusable events that one error report covers; contract: 10 in the samples."""
    error_samples: int = 3
    """How many events of one code an error report names at most."""
    webhook_retry_s: float = 5.0
    """Seconds until a webhook that was not taken is sent again; doubled each time."""
    webhook_attempts: int = 12
    """How often a webhook is sent before it is given up."""
    finalize_after_s: int = 3_600
    """Seconds from a renewal's draft invoice to its finalisation, the grace period: up to 72 h."""

    def changed(self, changes: Mapping[str, Any]) -> Switches:
        """A copy with some switches set; `ValueError` says which name or value cannot be."""
        hints = get_type_hints(Switches)
        for name, value in changes.items():
            if name not in hints:
                raise ValueError(
                    f"no switch {name!r}; there are {', '.join(f.name for f in fields(Switches))}"
                )
            allowed = get_args(hints[name])
            if allowed and isinstance(allowed[0], str) and value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
            if hints[name] is bool and not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
            if hints[name] in (int, float) and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                raise ValueError(f"{name} must be a number, not {value!r}")
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value!r}")
        return replace(self, **changes)

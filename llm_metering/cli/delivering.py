"""`deliver`: sends what services with `deliver="external"` hand over, and what dead ones left."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigurationError
from ..ledger.places import unfrozen_elsewhere, worker_of
from ..metering import Metering
from ..protocols import Alarm
from ..settings import Settings
from .explaining import for_a_person
from .options import ApiBase, ApiKey, Json, Sandbox, Target
from .screen import Screen, number
from .standing import Folder, open_ledger

if TYPE_CHECKING:
    from ..ledger.places import View


def deliver(
    ledger: Folder = None,
    once: Annotated[
        bool, typer.Option("--once", help="Deliver what is there and no other process delivers, and end.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            "--every", metavar="SECONDS", help="How often to look (env: LLM_METERING_FLUSH_EVERY_S)."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, help="With --once: how long to try.")
    ] = 90.0,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> None:
    """Send usage to Stripe for services that record it and leave delivery to this worker, until Ctrl-C."""
    folder, view = open_ledger(ledger)
    screen = Screen(as_json=as_json)
    with _worker(view, every, Target(api_key, api_base, sandbox, live=True), screen) as metering:
        if once:
            unfrozen = _deliver_once(metering, view, timeout, screen)
        else:
            screen.say(f"Delivering what is handed over in {folder}. Ctrl-C ends it, and loses nothing.")
            _wait_for_a_signal()
            unfrozen = 0
    left = _left(view) + unfrozen
    counters = metering.telemetry.snapshot()
    sent = {name.partition(".")[2]: n for name, n in counters.items() if name in _OUTCOMES}
    waiting = list(for_a_person(view.status(now=time.time()))) if once else []
    screen.document(
        {
            "ledger": folder,
            "sent": sent,
            "left": left,
            "held_by_others": unfrozen,
            "for_a_person": {each.about: each.count for each in waiting},
        }
    )
    screen.say(f"{number(sent.get('accepted', 0))} meter events accepted, {number(left)} left in the ledger.")
    if unfrozen:
        screen.say(f"{number(unfrozen)} of them are records that another worker holds.")
    for each in waiting:
        screen.say(f"- {each}", "yellow")
    if once and left:
        raise typer.Exit(1)


_OUTCOMES = frozenset(
    f"delivery.{kind}"
    for kind in (
        "accepted", "duplicate", "not_sent", "throttled", "refused_config", "refused_data", "ambiguous",
    )
)  # fmt: skip


@contextmanager
def _worker(view: View, every: float | None, target: Target, screen: Screen) -> Iterator[Metering]:
    """A metering that records nothing and delivers what it can get hold of."""
    key, base = target.place()
    if key is None:
        raise ConfigurationError(
            "no Stripe API key: set STRIPE_API_KEY, or use a local sandbox with --sandbox"
        )
    given: dict[str, Any] = {"stripe_api_key": key, "stripe_api_base": base, "deliver": "thread"}
    if every is not None:
        given["flush_every_s"] = every

    def tell(alarm: Alarm) -> None:
        screen.say(f"{alarm.name}: {alarm.message}", "yellow")

    settings = Settings.from_env(**given, encodings=())
    ledger = worker_of(view, settings.flush_every_s, settings.archive_after_days * 86_400.0)
    with Metering(ledger=ledger, settings=settings, on_alarm=tell) as metering:
        yield metering


def _deliver_once(metering: Metering, view: View, timeout_s: float, screen: Screen) -> int:
    """Deliver what was there when it began; return how many records another worker still holds."""
    began, ends_at = time.time(), time.monotonic() + timeout_s
    told = False
    while True:
        metering.flush(max(ends_at - time.monotonic(), 0.0))
        held = unfrozen_elsewhere(view, began)
        left_s = ends_at - time.monotonic()
        if not held or left_s <= 0 or view.pulse().paused:
            return held
        if not told:
            screen.say(f"Waiting for {number(held)} records that another worker holds, or held when it died.")
            told = True
        time.sleep(min(_LOOK_AGAIN_S, left_s))


_LOOK_AGAIN_S = 1.0


def _wait_for_a_signal() -> None:
    over = threading.Event()
    before = {s: signal.signal(s, lambda *_: over.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not over.wait(0.5):
            pass
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _left(view: View) -> int:
    """Meter events that are not delivered."""
    return len(view.events(states=("PENDING", "SENDING", "AMBIGUOUS"), limit=10_000_000))

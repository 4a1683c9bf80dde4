"""The demo's play: the acts in order, and what came of them. Showing it is `demo`'s business."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from .. import billing
from ..errors import ConfigurationError, MeteringError, MissingExtra
from ..ledger import LedgerView
from ..protocols import Balance, LedgerStatus
from .demo_books import Audit, Kind, Tokens, audit, recorded_in, sent_of
from .demo_load import Load, calls
from .stage import Server, Stage, free_port

STRIPE_KEY = "sk_test_sandbox"
GUIDE_EVENT = 3000
GUIDE_TOTALS = {"pay-as-you-go": Decimal("1.20"), "flat-fee": Decimal("180.00")}
DELIVERY_TIMEOUT_S = 30.0
WORD_EVERY_S = 0.01


class Show(Protocol):
    """What the play needs of whoever shows it."""

    def act(self, text: str) -> None:
        """A new act begins."""

    def progress(self, done: int, total: int) -> None:
        """Calls that have come to an end."""


@dataclass(frozen=True, slots=True)
class Person:
    """A customer of the demo, subscribed to one of the guides' offers."""

    name: str
    offer: str
    customer: str
    subscription: str


@dataclass(frozen=True, slots=True)
class Kill:
    """What `kill -9` hit."""

    after_calls: int
    streams: int
    """Streams that were under way."""
    plain: int
    """Plain answers that were being waited for."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    seed: int
    calls: int
    seconds: float
    kill: Kill
    audit: Audit
    status: LedgerStatus
    balances: Sequence[Balance]
    people: Sequence[tuple[Person, billing.InvoicePreview]]
    """Those whose calls were metered, with the invoice that they will get."""
    guides: Sequence[tuple[Person, billing.InvoicePreview]]
    """Those who got the guides' test event."""
    folder: Path
    """Logs and ledger, kept if anything was wrong."""

    @property
    def problems(self) -> list[str]:
        """Whatever is not as it must be; empty for a good demo."""
        return [
            *self.audit.problems,
            *(
                f"{p.name}'s invoice is {v.total}, not {GUIDE_TOTALS[p.offer]}"
                for p, v in self.guides
                if v.total != GUIDE_TOTALS[p.offer]
            ),
            *([] if self.status.conserved else ["the ledger's books are not conserved"]),
        ]

    @property
    def is_right(self) -> bool:
        return self.audit.is_right and not self.problems


def play(
    *, seed: int, requests: int, show: Show, before_audit: Callable[[Stage], object] = lambda stage: None
) -> Report:
    """Run the whole demo; every server it starts has ended when it returns or raises.

    Args:
        seed: Decides the questions and the answers.
        requests: How many questions are asked.
        show: Is told how far it is.
        before_audit: Called when everything is delivered and before the books are compared.
    """
    started = time.monotonic()
    examples = examples_folder()
    _check_packages()
    with Stage() as stage:
        show.act("Starting a local Stripe and a stand-in for the LLM provider")
        sandbox, provider = _start_neighbours(stage, examples, seed)
        show.act("Setting up both pricing guides")
        client = billing.connect(STRIPE_KEY, api_base=sandbox.url)
        people = [_person(client, "Ada", "pay-as-you-go"), _person(client, "Ben", "flat-fee")]
        show.act("Starting examples/fastapi_chat")
        ledger = stage.folder / "ledger"
        service = _start_service(stage, examples, sandbox, provider, ledger, people)
        show.act(f"{requests} questions, and one kill -9 in the middle")
        load = Load(service.port, calls(seed=seed, count=requests, keys=[_key(p) for p in people]))
        kill = _run(load, stage, service, show)
        show.act("Waiting until Stripe has it all")
        _wait_for_delivery(ledger)
        service.stop()
        before_audit(stage)
        show.act("Comparing the three books")
        found = audit(
            sent=sent_of(_get(provider, "/_tally")),
            answered=[fate.response_id or "an answer without an id" for fate in load.fates if fate.whole],
            cut=sum(not fate.whole for fate in load.fates),
            recorded=recorded_in(ledger),
            in_stripe=_stripes_books(sandbox, {p.customer for p in people}),
        )
        show.act("The guides' own test event, for two fresh customers")
        guides = [_person(client, "John Doe", "pay-as-you-go"), _person(client, "Jenny Rosen", "flat-fee")]
        for person in guides:
            billing.send_test_event(client, person.customer, GUIDE_EVENT)
        view = LedgerView(ledger)
        report = Report(
            seed=seed,
            calls=requests,
            seconds=time.monotonic() - started,
            kill=kill,
            audit=found,
            status=view.status(now=time.time()),
            balances=view.balances(),
            people=[(p, billing.preview_invoice(client, subscription=p.subscription)) for p in people],
            guides=[(p, billing.preview_invoice(client, subscription=p.subscription)) for p in guides],
            folder=stage.folder,
        )
        stage.keeps_folder = not report.is_right
        return report


def examples_folder() -> Path:
    """Where the example services are: in the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "fastapi_chat" / "app.py").is_file():
            return folder
    raise ConfigurationError(
        "the example services are not installed; run the demo from a clone of the repository with: make demo"
    )


def _check_packages() -> None:
    for package, extra in (("fastapi", "fastapi"), ("uvicorn", "sandbox")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra)
    if importlib.util.find_spec("openai") is None:
        raise ConfigurationError(
            "the demo's service calls its provider through the openai SDK, which is not installed; "
            "install it with: pip install openai"
        )


def _start_neighbours(stage: Stage, examples: Path, seed: int) -> tuple[Server, Server]:
    port = free_port()
    command = [sys.executable, "-m", "llm_metering", "sandbox", "--port", str(port)]
    sandbox = stage.launch("sandbox", command, env=_environment(), port=port, ready_path="/_sandbox/health")
    provider = _launch_app(
        stage,
        "provider",
        examples,
        ("provider_stand_in:create_app", "--factory"),
        ready_path="/_tally",
        STAND_IN_SEED=str(seed),
        STAND_IN_DELAY_S=str(WORD_EVERY_S),
    )
    stage.wait_for(sandbox)
    stage.wait_for(provider)
    return sandbox, provider


def _start_service(
    stage: Stage, examples: Path, sandbox: Server, provider: Server, ledger: Path, people: Sequence[Person]
) -> Server:
    service = _launch_app(
        stage,
        "service",
        examples / "fastapi_chat",
        ("app:app",),
        ready_path="/health",
        OPENAI_API_KEY="stand-in",
        OPENAI_BASE_URL=f"{provider.url}/v1",
        STRIPE_API_KEY=STRIPE_KEY,
        STRIPE_API_BASE=sandbox.url,
        LLM_METERING_LEDGER=str(ledger),
        LLM_METERING_BUCKET_S="1",  # a minute's sums are what one runs; a demo has no minute
        LLM_METERING_FLUSH_EVERY_S="0.25",
        CHAT_API_KEYS=",".join(f"{_key(p)}={p.customer}" for p in people),
    )
    stage.wait_for(service)
    return service


def _launch_app(
    stage: Stage, name: str, folder: Path, app: Sequence[str], *, ready_path: str, **variables: str
) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), *app, "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log"]
    return stage.launch(name, command, env={**_environment(), **variables}, port=port, ready_path=ready_path)


def _environment() -> dict[str, str]:
    """This process's, without what is meant for somebody's real service."""
    ours = ("LLM_METERING_", "STRIPE_", "OPENAI_", "UVICORN_", "WEB_CONCURRENCY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def _person(client: Any, name: str, offer: str) -> Person:
    catalog = billing.PayAsYouGo() if offer == "pay-as-you-go" else billing.FlatFeeWithOverages()
    applied = billing.apply(catalog, client)
    customer = billing.create_customer(client, name)
    return Person(name, offer, customer, billing.subscribe(client, customer, applied).id)


def _key(person: Person) -> str:
    return f"key-{person.name.lower()}"


def _run(load: Load, stage: Stage, service: Server, show: Show) -> Kill:
    load.start()
    try:
        _watch(load, lambda: len(load.fates) >= load.total // 2, show)
        # A kill that hits nobody would prove nothing.
        load.wait_until(lambda: load.streaming >= 2 and load.waiting >= 1, timeout_s=5)
        kill = Kill(len(load.fates), load.streaming, load.waiting)
        service.kill()
        stage.relaunch(service)
        _watch(load, lambda: load.is_done, show)
    finally:
        load.stop()
    return kill


def _watch(load: Load, done: Callable[[], bool], show: Show) -> None:
    while not load.wait_until(done, timeout_s=0.1):
        show.progress(len(load.fates), load.total)
    show.progress(len(load.fates), load.total)


def _wait_for_delivery(ledger: Path) -> None:
    view = LedgerView(ledger)
    deadline = time.monotonic() + DELIVERY_TIMEOUT_S
    while waiting := _waiting(view.status(now=time.time())):
        if time.monotonic() > deadline:
            raise MeteringError(f"not delivered within {DELIVERY_TIMEOUT_S:.0f} s: {waiting}")
        time.sleep(0.1)


def _waiting(status: LedgerStatus) -> str:
    """What is still on its way to Stripe."""
    on_the_way = {
        "calls": status.unfrozen_records,
        "streams": status.streams_under_way,
        "meter events": sum(status.events.get(s, 0) for s in ("PENDING", "SENDING", "AMBIGUOUS")),
    }
    return ", ".join(f"{n} {what}" for what, n in on_the_way.items() if n)


def _stripes_books(sandbox: Server, customers: set[str]) -> Tokens:
    sums: dict[Kind, Decimal] = {}
    for row in _get(sandbox, "/_sandbox/books")["rows"]:
        if row["customer"] in customers:
            kind = Kind(row["customer"], row["dimensions"]["model"], row["dimensions"]["token_type"])
            sums[kind] = sums.get(kind, Decimal()) + Decimal(row["value"])
    return sums


def _get(server: Server, path: str) -> Mapping[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path)
        content: Mapping[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return content

"""What goes on without a request: reports and webhooks, while someone listens for them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from .deliveries import DESTINATION, ENDPOINT, deliver, due
from .faults import Faults
from .store import Account
from .upkeep import catch_up
from .world import Call, World

EVERY_S = 0.2
logger = logging.getLogger("llm_metering.sandbox")


class Background:
    """Delivers webhooks, in the event loop of the server."""

    def __init__(self, world: World, faults: Faults) -> None:
        self._world = world
        self._faults = faults
        self._sending: asyncio.Lock | None = None

    async def run(self) -> None:
        """Until cancelled."""
        self._sending = asyncio.Lock()
        awake = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(awake.set)

        self._world.wake = wake
        try:
            while True:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(awake.wait(), EVERY_S)
                awake.clear()
                try:
                    self._catch_up()
                    await self.deliver(self._world.now())
                except Exception:
                    logger.exception("the sandbox's background work failed")
        finally:
            self._world.wake = lambda: None

    async def deliver(self, now: float | None) -> int:
        """Send what is due, or all that waits where `now` is None; return how many were taken."""
        if self._sending is None:
            self._sending = asyncio.Lock()
        async with self._sending:
            with self._world.store.lock:
                waiting = due(self._world.store, now)
            return await deliver(self._world, self._faults, waiting)

    def _catch_up(self) -> None:
        for account in self._listening():
            with self._world.store.transaction():
                catch_up(Call(self._world, account, {}))

    def _listening(self) -> list[Account]:
        """The accounts that have somewhere to send events to."""
        with self._world.store.lock:
            found = self._world.store.db.execute(
                "SELECT DISTINCT account FROM document WHERE kind IN (?, ?)", (ENDPOINT, DESTINATION)
            ).fetchall()
            numbers = {n for (n,) in found}
            return [account for account in self._world.store.accounts() if account.n in numbers]

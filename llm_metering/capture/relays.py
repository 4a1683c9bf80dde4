"""Relaying an async generator step by step, whatever is sent or thrown into it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from . import context

if TYPE_CHECKING:
    from .runs import Run


class AsyncSteps:
    """Takes an async generator from one item to the next; each step runs in the run's scope."""

    def __init__(self, run: Run, inner: AsyncGenerator[Any, Any]) -> None:
        self._run = run
        self._inner = inner
        self.item: Any = None

    async def go_on(self, sent: Any = None) -> bool:
        """Whether there is another item."""
        return await self._step(self._inner.__anext__() if sent is None else self._inner.asend(sent))

    async def throw(self, exc: BaseException) -> bool:
        return await self._step(self._inner.athrow(exc))

    async def close(self) -> None:
        token = context.enter(self._run.scope)
        try:
            await self._inner.aclose()
        finally:
            context.leave(self._run.scope, token)
            self._run.abandon()

    async def _step(self, step: Any) -> bool:
        token = context.enter(self._run.scope)
        try:
            self.item = await step
        except StopAsyncIteration:
            self._run.finish(complete=True)
            return False
        except BaseException:
            self._run.finish(complete=False)
            raise
        finally:
            context.leave(self._run.scope, token)
        self._run.take(self.item)
        return True


async def relayed(run: Run, inner: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    """Relay an async generator, whatever is sent or thrown into it."""
    steps = AsyncSteps(run, inner)
    more = await steps.go_on()
    while more:
        thrown = None
        sent = None
        try:
            sent = yield steps.item
        except GeneratorExit:
            await steps.close()
            raise
        except BaseException as exc:
            thrown = exc
        more = await (steps.go_on(sent) if thrown is None else steps.throw(thrown))

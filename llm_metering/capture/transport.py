"""`MeteringTransport`: meters whatever an httpx or httpx2 client sends, for SDKs that let it be set."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import claims
from .http_calls import HttpMeter

if TYPE_CHECKING:
    from .lifespan import Home


class MeteringTransport:
    """A transport of httpx or httpx2, sync or async, that records the providers' answers passing through it.

        client = Mistral(client=httpx2.Client(transport=MeteringTransport(metering)))
        client = OpenAI(http_client=httpx2.Client(transport=MeteringTransport(metering, feature="drafts")))

    Answers are told from their paths, such as `/chat/completions`, and are seen as they are read: decoded,
    chunk by chunk, unchanged. Whatever a wrapped client records is not recorded here again.

    Args:
        metering: The `Metering` that records.
        inner: The transport that sends. Default: a plain one of the library whose client this is given to.
        provider: Whose answers pass, where it is only one, such as "mistral".
        dimensions: Added to everything that is recorded here, such as feature="drafts".
    """

    def __init__(
        self, metering: Home, inner: Any = None, *, provider: str | None = None, **dimensions: str
    ) -> None:
        named = {name: str(value) for name, value in dimensions.items() if value is not None}
        self._meter = HttpMeter(metering.recorder, surface="transport", provider=provider, dimensions=named)
        self._inner = inner
        self._async_inner = inner
        claims.need()

    def handle_request(self, request: Any) -> Any:
        """Send a request of a sync client."""
        call = self._meter.begin(request)
        if self._inner is None:
            self._inner = _library_of(request).HTTPTransport()
        response = self._inner.handle_request(request)
        return response if call is None else call.answered(response)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request of an async client."""
        call = self._meter.begin(request)
        if self._async_inner is None:
            self._async_inner = _library_of(request).AsyncHTTPTransport()
        response = await self._async_inner.handle_async_request(request)
        return response if call is None else call.answered(response)

    def close(self) -> None:
        """Close the transport that sends."""
        if self._inner is not None:
            self._inner.close()

    async def aclose(self) -> None:
        """Close the transport that sends."""
        if self._async_inner is not None:
            await self._async_inner.aclose()

    def __enter__(self) -> MeteringTransport:
        if self._inner is not None:
            self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    async def __aenter__(self) -> MeteringTransport:
        if self._async_inner is not None:
            await self._async_inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.aclose()


def _library_of(request: Any) -> Any:
    """httpx or httpx2, whichever made this request; it is loaded, or there would be none."""
    return sys.modules[type(request).__module__.partition(".")[0]]

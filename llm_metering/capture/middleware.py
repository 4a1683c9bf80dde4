"""The middleware: a context for every request, the app's own answers read, a clean start and stop.

Pure ASGI. The instance holds configuration only; a request's state lives in its `Scope` and `AppAnswer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextvars import Token
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from . import context
from .answers import LAST, AppAnswer
from .capacity import Capacity, turn_away
from .context import CURRENT, Request, is_on_disk
from .conversations import Conversation
from .lasting import is_lookup, may_be_lookup
from .lifespan import ASGIApp, ASGIScope, Home, Message, Receive, Send, run_with_lifespan
from .routes import DEFAULT_PATHS, DEFAULT_PUBLIC_PATHS, EMBEDDING_PATHS, SURE_PATHS, Remembered, path_matcher
from .waiting import coroutine_marker

if TYPE_CHECKING:
    from .context import Scope

_MISSING = Token.MISSING


class MeteringMiddleware:
    """Meters an ASGI app: ties what its requests use to their customers, and starts and stops with it.

        app.add_middleware(MeteringMiddleware, metering=metering)

    Answers pass unchanged, in order and undelayed; unless `durability="memory"` only the last message of a
    response that used something waits until its usage is on disk. Several of these in one app, for one
    `Metering`, count once. While usage cannot be written, `settings.at_capacity` says what becomes of
    requests to `paths` and to paths that have used something before.

    Args:
        metering: The `Metering` of this app.
        paths: Routes whose own answers are read where nothing inside them recorded anything, such as those
            of a gateway; `*` stands for anything. Only answers to POST with a status of 2xx are read, and
            those to GET for responses that went on in the background.
        read_answers: Whether to read the app's own answers at all.
        public_paths: Paths served without a customer even with `on_missing_customer="reject"`. That setting
            answers 401 on all other paths, whatever `paths` says; CORS preflights pass. It needs to know
            the customer before the app runs: put authentication outside of this middleware, or use a
            resolver that looks at the request itself, such as `from_api_key`.

    Raises:
        ConfigurationError: `metering` is no `Metering`, or a path is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        metering: Home,
        *,
        paths: Sequence[str] = DEFAULT_PATHS,
        read_answers: bool = True,
        public_paths: Sequence[str] = DEFAULT_PUBLIC_PATHS,
    ) -> None:
        if not hasattr(metering, "recorder"):
            raise ConfigurationError(
                f"MeteringMiddleware needs metering=Metering(...), not {type(metering).__name__}"
            )
        self.app = app
        self._home = metering
        self._recorder = metering.recorder
        self._reads = read_answers
        self._is_metered = path_matcher(paths)
        # A path that was asked for by name is a model's for sure.
        self._is_sure = path_matcher(SURE_PATHS if paths is DEFAULT_PATHS else paths)
        self._is_public = path_matcher(public_paths, name="public_paths", surely=True)
        self._rejects = metering.settings.on_missing_customer == "reject"
        # Paths whose requests may need more than a context.
        self._is_special = Remembered(
            lambda path: self._rejects or self._is_metered(path) or may_be_lookup(path)
        )
        self._holds = metering.settings.durability != "memory"
        self._capacity = Capacity(metering)
        self._shapes = self._capacity.shapes
        self._has_room = metering.has_room
        self._hold = self._send_when_on_disk if self._holds else None
        self._marked = coroutine_marker()
        self._marked(_Request.pass_on)
        self._marked(_Request.pass_on_outside)
        self._marked(AppAnswer.pass_on)
        self._key = f"llm_metering.{id(self._recorder):x}"

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        # A request whose answer is not read needs a context and little more, as long as nothing in it uses
        # anything. It passes here, by as few steps as there can be, and everything else by `_serve`.
        if (
            scope["type"] != "http"
            or self._key in scope
            or "state" not in scope
            or self._is_special[scope["path"]]
            or not self._home.is_started
            or (self._shapes and not self._has_room())
            or CURRENT.get() is not None
        ):
            await self._serve(scope, receive, send)
            return
        request = scope[self._key] = _Request()
        request.asgi, request.owner, request.made, request.over = scope, self._recorder, [], False
        request.middleware, request.receive, request.send = self, receive, send
        request.token = CURRENT.set(request)
        if scope["method"] != "GET":
            send = request.pass_on_outside
        elif self._holds:
            # What nearly always has no body: nothing of it is left to be read when it has been answered.
            send = request.pass_on
        try:
            await self.app(scope, request.receive_outside, send)
        finally:
            request.over = True
            if request.made:
                if (end := self._leave(request, is_read=False)) is not None:
                    await end
            else:
                # What `_leave` does, without the calls.
                scope.pop(self._key, None)
                try:  # noqa: SIM105  (as long as nothing is raised this costs nothing)
                    CURRENT.reset(request.token)
                except ValueError:
                    pass

    async def _serve(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await self._other(scope, receive, send)
            return
        if self._key in scope:
            await self._nested(scope[self._key], scope, receive, send)
            return
        if not self._home.is_started:
            self._start_soon()
        reads = self._reads and kind == "http" and self._brings_usage(scope)
        # Routes that never used anything need no room, and are not asked about it.
        is_asked = reads or self._shapes
        if is_asked and not self._has_room() and self._stops(scope) and not await self._capacity.admits():
            await turn_away(scope, receive, send)
            return
        if "state" not in scope:
            # Made here, so that inner layers share it even where one of them copies the scope.
            scope["state"] = {}
        request = scope[self._key] = _Request()
        request.asgi, request.owner, request.made, request.over = scope, self._recorder, [], False
        request.middleware, request.receive, request.send = self, receive, send
        context.forget_ended()
        request.token = CURRENT.set(request)
        answer = conversation = None
        receive = request.receive_outside
        try:
            if reads:
                answer, receive, send = self._reading(request.scope(), receive, send, request.send_outside)
            else:
                send = request.pass_on_outside
                if kind == "websocket" and self._reads:
                    conversation, send = self._conversing(request.scope(), send)
            if self._rejects and not await self._is_admitted(request.scope(), scope):
                await _reject(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            if answer is not None and not answer.over:
                answer.finish(complete=False)
            if conversation is not None:
                conversation.close()
            request.over = True
            if (end := self._leave(request, is_read=answer is not None)) is not None:
                await end

    async def _other(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._with_lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _with_lifespan(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if self._key in scope:
            await self.app(scope, receive, send)
            return
        scope[self._key] = True
        await run_with_lifespan(self._home, self.app, scope, receive, send)

    # A request.

    def _brings_usage(self, scope: ASGIScope) -> bool:
        """Whether the answer is one of a model's, made now or earlier in the background."""
        path: str = scope["path"]
        if scope["method"] == "POST":
            return self._is_metered(path)
        return scope["method"] == "GET" and is_lookup(path) and self._is_metered(path.rpartition("/")[0])

    def _reading(
        self, request: Scope, receive: Receive, send: Send, send_last: Send
    ) -> tuple[AppAnswer, Receive, Send]:
        """For routes whose answers are read: messages go on unchanged, and are looked at as they pass."""
        request.is_read = True
        path: str = request.asgi["path"] if request.asgi is not None else ""
        is_get = request.asgi is not None and request.asgi["method"] == "GET"
        api = "embeddings" if path.rstrip("/").endswith(EMBEDDING_PATHS) else None
        answer = AppAnswer(
            self._recorder,
            request,
            api=api,
            path=path,
            is_sure=self._is_sure(path),
            is_lookup=is_get,
            send=send,
            send_last=send_last,
            hold=self._hold,
        )

        async def receive_kept() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                answer.keep_request(message)
            return message

        return answer, receive_kept, answer.pass_on

    async def _send_when_on_disk(self, request: Scope, send: Send, message: Message) -> None:
        await self._before_last(request)
        await send(message)

    async def send_recorded(self, request: Scope, send: Send, message: Message) -> None:
        kind = message["type"]
        if self._holds and kind in LAST and not message.get("more_body") and not is_on_disk(request):
            await self._before_last(request)
        await send(message)
        if request.parked and kind == "websocket.send" and not request.is_unanswered:
            # A connection may last for days: what it used is not kept waiting for its end, nor is every
            # message for a resolver that does not answer.
            await self._settle(request, self._home.settings.commit_timeout_s)
            request.is_unanswered = bool(request.parked)

    def _conversing(self, request: Scope, send: Send) -> tuple[Conversation, Send]:
        """For websockets: what the app says on it is looked at as it passes."""
        request.is_read = True
        conversation = Conversation(self._recorder, request)
        return conversation, self._marked(conversation.watching(send))

    async def _nested(self, request: Request, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Inside another middleware of the same `Metering`: one request, one context."""
        outer = request.scope()
        # The innermost view knows most: authentication may stand between the two.
        outer.asgi = scope
        is_new = self._reads and not outer.is_read
        if is_new and scope["type"] == "websocket":
            conversation, send = self._conversing(outer, send)
            try:
                await self.app(scope, receive, send)
            finally:
                conversation.close()
        elif is_new and self._brings_usage(scope):
            answer, receive, send = self._reading(outer, receive, send, send)
            try:
                await self.app(scope, receive, send)
            finally:
                answer.finish(complete=False)
        else:
            await self.app(scope, receive, send)

    # The end of a request.

    async def _before_last(self, request: Scope) -> None:
        """Wait until what the request used is on disk, at most `commit_timeout_s`."""
        if self._capacity.lets_through:
            return
        ends_at = monotonic() + self._home.settings.commit_timeout_s
        left_s = self._home.settings.commit_timeout_s
        try:
            while left_s > 0:
                await self._settle(request, left_s)
                left_s = max(0.0, ends_at - monotonic())
                # Counting on another thread may have put one more aside for its customer meanwhile.
                if not await self._recorder.committed(request, within_s=left_s) or not request.parked:
                    return
        except Exception as exc:
            self._home.telemetry.failure("middleware.commit", exc)

    async def _settle(self, request: Scope, within_s: float) -> None:
        """Ask for the customer if anything waits for it."""
        if not request.parked:
            return
        from anyio import move_on_after

        with move_on_after(within_s):
            await self._recorder.settle(request)

    def _leave(self, request: Request, *, is_read: bool) -> Awaitable[None] | None:
        """The end of a request, however it ended; what is to be awaited where it takes time."""
        used = request.scope()
        if used.recorded or used.opened:
            if not is_read:
                self._capacity.learn(request.asgi["path"])
            if used.parked or used.opened or self._recorder.naming.needs_waiting(used):
                return self._end(request, used)
        self._close(request, used)
        return None

    async def _end(self, request: Request, used: Scope) -> None:
        """Name the customer of what was used, and leave what is still open."""
        try:
            # What is still being counted, or read, asks for its customer when nobody can wait any more.
            await self._name_customer(used)
        finally:
            self._close(request, used)

    def _close(self, request: Request, used: Scope) -> None:
        context.leave(used, request.token)
        request.asgi.pop(self._key, None)
        # Another thread may have put something aside until this very moment.
        self._recorder.release(used)
        if used.opened:
            for stream in used.streams:
                stream.leave_progress()

    async def _name_customer(self, request: Scope) -> None:
        """The last chance to ask an async resolver, for a cancelled request too."""
        from anyio import move_on_after

        with move_on_after(self._home.settings.commit_timeout_s, shield=True):
            await self._recorder.resolve(request)

    # Who is let in.

    def _stops(self, scope: ASGIScope) -> bool:
        """Whether this request is likely to use what could not be recorded."""
        path: str = scope["path"]
        if self._is_public(path) or _is_preflight(scope):
            return False
        is_post = self._reads and scope["type"] == "http" and scope["method"] == "POST"
        return (is_post and self._is_metered(path)) or self._capacity.knows(path)

    async def _is_admitted(self, request: Scope, scope: ASGIScope) -> bool:
        if self._is_public(scope["path"]) or _is_preflight(scope):
            return True
        return await self._recorder.resolve(request) is not None

    def _start_soon(self) -> None:
        try:
            self._home.start_soon()
        except Exception as exc:
            self._home.telemetry.failure("metering.start", exc)


class _Request(Request):
    """One HTTP request or websocket, and the way of its messages where nothing is read.

    A server may go on to the next request of a connection while it is asked for more of this one, or given
    the last of it, and the task of that next request inherits the context: it must not be this one's.
    """

    __slots__ = ("middleware", "receive", "send")

    middleware: MeteringMiddleware
    receive: Receive
    send: Send

    def pass_on(self, message: Message) -> Awaitable[None]:
        """Send a message; only a last one, of a request that used something, may have to wait.

        Not a coroutine of its own: where nothing is recorded it costs no more than a look.
        """
        if self.made and self.made[0].recorded:
            return self.middleware.send_recorded(self.made[0], self.send, message)
        return self.send(message)

    def pass_on_outside(self, message: Message) -> Awaitable[None]:
        """As `pass_on`, and the last one outside of this request's context."""
        if self.made and self.made[0].recorded:
            return self.middleware.send_recorded(self.made[0], self.send_outside, message)
        if message["type"] in LAST and not message.get("more_body"):
            return self.send_outside(message)
        return self.send(message)

    async def receive_outside(self) -> Message:
        """Receive a message outside of this request's context."""
        token = CURRENT.set(self.outer)
        try:
            return await self.receive()
        finally:
            context.put_back(token)

    async def send_outside(self, message: Message) -> None:
        """Send a message outside of this request's context."""
        old = self.token.old_value
        token = CURRENT.set(None if old is _MISSING else old)
        try:
            await self.send(message)
        finally:  # as `put_back` does, without the call
            try:  # noqa: SIM105
                CURRENT.reset(token)
            except ValueError:
                pass


def _is_preflight(scope: ASGIScope) -> bool:
    """A browser asks before the real request, and may not say who it is."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    return any(name.lower() == b"access-control-request-method" for name, _ in scope["headers"])


_REFUSAL = (
    b'{"error":{"message":"No customer could be found for this request. Authenticate as a customer.",'
    b'"type":"authentication_error","param":null,"code":"missing_customer"}}'
)


async def _reject(scope: ASGIScope, receive: Receive, send: Send) -> None:
    """401 in the shape that provider SDKs show as a message."""
    prefix = "http."
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": "no customer"})
            return
        prefix = "websocket.http."
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_REFUSAL)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": f"{prefix}response.start", "status": 401, "headers": headers})
    await send({"type": f"{prefix}response.body", "body": _REFUSAL})

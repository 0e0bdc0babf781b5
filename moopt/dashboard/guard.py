"""What stands before every page: only this host, only with the token where one is needed, and strict headers."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may load for a page: nothing from elsewhere. Plotly writes its style into the page."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
COOKIE = "moopt-token-{port}"
"""A host's cookies are the same at all its ports: two dashboards would overwrite each other's."""


class Guard:
    """Refuses requests by other names than the host's, from other sites, and without the token.

    A page elsewhere cannot read this one, even if its name is made to point here (DNS rebinding): the Host header then
    has that name. Requests that change something need an Origin of this host, too.

    Args:
        app: What is guarded.
        hosts: The names that the server is known by, without ports; None: any, for whoever knows the token.
        token: What has to be in the address once, and is kept in a cookie then; None: nothing.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, token: str | None) -> None:
        assert hosts is not None or token is not None
        self._app, self._token = app, token
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin", "").partition("://")[2]
        if self._hosts is not None and name(host) not in self._hosts:
            await PlainTextResponse("This server is not known by that name.", 403)(scope, receive, guarded)
        elif scope["method"] not in ("GET", "HEAD") and (not origin or origin != host):
            await PlainTextResponse("Requests that change something come from this server's own pages.", 403)(
                scope, receive, guarded
            )
        elif self._token is not None and not self._knows(headers, cookie := COOKIE.format(port=scope["server"][1])):
            asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            given = dict(asked).get("token", "")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                told = "Open the address that moopt dashboard printed: it ends in a token."
                await PlainTextResponse(told, 401)(scope, receive, guarded)
                return
            rest = urlencode([(key, value) for key, value in asked if key != "token"])
            answer = RedirectResponse(f"/{scope['path'].lstrip('/')}{f'?{rest}' if rest else ''}", 303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="lax")  # a link in a message has to open
            await answer(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _knows(self, headers: Headers, cookie: str) -> bool:
        """Whether a request has the cookie, among those of whatever else is on this host."""
        assert self._token is not None
        pairs = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        values = [value for name, _, value in pairs if name == cookie]
        return any(hmac.compare_digest(value.encode(), self._token.encode()) for value in values)


def name(address: str) -> str:
    """The host's name in a Host header, without its port; empty for what is none."""
    try:
        return (urlsplit(f"//{address}").hostname or "").lower()
    except ValueError:
        return ""

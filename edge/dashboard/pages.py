"""The page: files of this package, read once. Nothing in them is anybody's data, so they are served without a token."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from edge.d1_errors import D1Error

_TYPES: Final = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES: Final = (
    "index.html",
    "dashboard.css",
    "dashboard.js",
    "stream.js",
    "pipeline.js",
    "charts.js",
    "tenant.js",
    "format.js",
    "icon.svg",
    "vendor/uPlot.iife.min.js",
    "vendor/uPlot.min.css",
)
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class Pages:
    """All files, in memory: about 100 KB."""

    def __init__(self) -> None:
        static = resources.files("edge.dashboard").joinpath("static")
        self._files = {name: static.joinpath(name).read_bytes() for name in _FILES}
        self._tags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, content in self._files.items()}

    async def get(self, request: Request) -> Response:
        """One file; the page by the empty name. Raises D1Error."""
        name = request.path_params["name"] or "index.html"
        content = self._files.get(name)
        if content is None:
            raise D1Error("Not Found", status=404, code=7404)
        headers = {**_HEADERS, "etag": self._tags[name]}
        if request.headers.get("if-none-match") == self._tags[name]:
            return Response(None, 304, headers)
        return Response(content, 200, {**headers, "content-type": _TYPES["." + name.rpartition(".")[2]]})


async def to_page(_request: Request) -> Response:
    """Its files are relative to it."""
    return RedirectResponse("/dashboard/", 308)

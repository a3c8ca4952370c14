"""Replicas -> readers: in process (`edge.open`), and over an HTTP API in the shape of Cloudflare D1's (`edge.api`)."""

from __future__ import annotations

from edge.reader import AsyncReader, Reader, open_async
from edge.reader import open_reader as open  # noqa: A004 - edge.open reads as what it does

__all__ = ["AsyncReader", "Reader", "open", "open_async"]

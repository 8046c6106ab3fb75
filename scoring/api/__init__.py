"""The HTTP API: the handlers and the queries, by JSON. It holds no rule and no SQL."""

from scoring.api.app import create_api

__all__ = ["create_api"]

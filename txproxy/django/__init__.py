"""For Django sites whose database is behind the proxy: their statements say which view they are of.

    MIDDLEWARE = ["txproxy.django.TagMiddleware", ...]

The proxy shows these tags where it shows who has left a transaction open. Nothing else of txproxy
imports this package, nor Django; but the SQLite process does for a client that is Django's engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txproxy.django.middleware import TagMiddleware

__all__ = ["TagMiddleware"]


def __getattr__(name: str) -> Any:
    """Not at the top: it takes most of Django, and the SQLite process has clients that wait."""
    if name in __all__:
        return getattr(import_module("txproxy.django.middleware"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""For Django sites whose database is behind the proxy: their statements say which view they are of.

    MIDDLEWARE = ["txproxy.django.TagMiddleware", ...]

The proxy shows these tags where it shows who has left a transaction open. Nothing else of txproxy
imports this package, nor Django.
"""

from txproxy.django.middleware import TagMiddleware

__all__ = ["TagMiddleware"]

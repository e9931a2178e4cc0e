"""Clients that are Django's engine: its functions run here, so they are to be those of its Django.

Nothing here imports Django but for such a client.
"""

import sys
from importlib import import_module
from typing import Final

from txproxy.errors import TxproxyError

PARAMETER: Final = "txproxy.django"
"""The start-up parameter: major and minor version of the client's Django, such as "5.2"."""

FUNCTIONS: Final = "txproxy.django.functions:register"
"""As in a file's setting `functions`."""


def prepare(wanted: str) -> None:
    """Import what that version needs. It takes its time.

    TxproxyError: there is no such Django here; the message says what to do.
    """
    try:
        django = import_module("django")
        import_module(FUNCTIONS.partition(":")[0])
    except ImportError as error:
        raise _refusal(wanted, f"txproxy runs without it ({error})") from None
    found = "{}.{}".format(*django.VERSION[:2])
    if found != wanted:
        raise _refusal(wanted, f"txproxy runs with Django {found}")


def _refusal(wanted: str, but: str) -> TxproxyError:
    return TxproxyError(
        f"the site has Django {wanted}, but {but}, and Django's SQL functions run there: install"
        f" it for txproxy ({sys.executable} -m pip install 'Django=={wanted}.*') and restart it",
        sqlstate="0A000",
    )

"""Django in the test's process, with aliases that a test gives it.

wrapper = use("ours", engine settings)      then connections["ours"], atomic(using="ours")
"""

from pathlib import Path
from typing import Any, Final

import django
from django.conf import settings
from django.db import connections, models
from django.db.utils import load_backend

OURS: Final = "ours"
STOCK: Final = "stock"

_NONE: Final[dict[str, Any]] = {"ENGINE": "django.db.backends.dummy"}

if not settings.configured:
    settings.configure(
        DATABASES={"default": _NONE, OURS: {**_NONE}, STOCK: {**_NONE}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        INSTALLED_APPS=[],
        USE_TZ=True,
    )
    django.setup()


class Note(models.Model):  # type: ignore[misc]  # Django has no types
    """`notes_note (id, text)`, which TABLE makes."""

    text = models.TextField()

    class Meta:
        app_label = "notes"


TABLES: Final = (
    "CREATE TABLE notes_note (id integer PRIMARY KEY AUTOINCREMENT, text text NOT NULL)",
    "CREATE TABLE parent (id integer PRIMARY KEY)",
    """CREATE TABLE child (id integer PRIMARY KEY,
    parent_id integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED)""",
)


def wrapper(alias: str, engine: str, name: str | Path, **more: Any) -> Any:
    """A connection's wrapper, which the site does not know yet."""
    test = {"NAME": None, "CHARSET": None, "COLLATION": None, "MIGRATE": True, "MIRROR": None}
    found = {
        "ENGINE": engine,
        "NAME": name,
        "USER": "",
        "PASSWORD": "",
        "HOST": "",
        "PORT": "",
        "ATOMIC_REQUESTS": False,
        "AUTOCOMMIT": True,
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": False,
        "OPTIONS": {},
        "TIME_ZONE": None,
        **more,
        "TEST": {**test, **more.get("TEST", {})},
    }
    return load_backend(engine).DatabaseWrapper(found, alias)


def use(made: Any) -> Any:
    """Make it the connection of its alias, in this thread."""
    connections[made.alias] = made
    return made


def drop(alias: str) -> None:
    """Close the connection of this alias."""
    made = connections[alias]
    made.in_atomic_block = False
    made.close()
    del connections[alias]


def ask(made: Any, sql: str, *params: Any) -> Any:
    """The rows of a statement."""
    with made.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall()

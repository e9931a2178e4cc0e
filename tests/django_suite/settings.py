"""Settings for Django's tests/runtests.py: what a project has, and nothing for us.

Where the server is, and which driver to use, say the variables that `__main__.py` sets.
"""

import json
import os
import sys
from typing import Any, Final

import django

DRIVER: Final = os.environ["TXPROXY_SUITE_DRIVER"]
DIRECTORY: Final = os.environ["TXPROXY_SUITE_DIRECTORY"]
"""Of SQLite files; "": PostgreSQL."""

if DRIVER == "psycopg2":
    # Django takes psycopg 3 wherever it is to be had
    sys.modules["psycopg"] = None  # type: ignore[assignment]


def _database(name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["TXPROXY_SUITE_HOST"],
        "PORT": os.environ["TXPROXY_SUITE_PORT"],
        "USER": "postgres",
        "NAME": name,
        "OPTIONS": {"server_side_binding": True} if DRIVER == "psycopg-binding" else {},
    }


def _file(name: str) -> dict[str, Any]:
    """Without a HOST Django's own backend, which is given paths."""
    host = os.environ["TXPROXY_SUITE_HOST"]
    path = "" if host else f"{DIRECTORY}/"
    return {
        "ENGINE": "txproxy.django.sqlite3" if host else "django.db.backends.sqlite3",
        "HOST": host,
        "PORT": os.environ["TXPROXY_SUITE_PORT"],
        "NAME": f"{path}{name}.sqlite3",
        "OPTIONS": json.loads(os.environ["TXPROXY_SUITE_OPTIONS"]) if host else {},
        "TEST": {"NAME": f"{path}test_{name}.sqlite3"},
    }


_make: Final = _file if DIRECTORY else _database
DATABASES = {"default": _make("django"), "other": _make("django_other")}
TEST_RUNNER = "tests.django_suite.runner.Runner"

# The rest is that of Django's own tests/test_sqlite.py.
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if django.VERSION < (6,):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False

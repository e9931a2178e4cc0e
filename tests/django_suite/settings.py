"""Settings for Django's tests/runtests.py: what a project on PostgreSQL has, and nothing for us.

Where the server is, and which driver to use, say the variables that `__main__.py` sets.
"""

import os
import sys
from typing import Any, Final

DRIVER: Final = os.environ["TXPROXY_SUITE_DRIVER"]

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


DATABASES = {"default": _database("django"), "other": _database("django_other")}
TEST_RUNNER = "tests.django_suite.runner.Runner"

# The rest is that of Django's own tests/test_sqlite.py.
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False

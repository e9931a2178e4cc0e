"""`python -m tests.system.django_site DRIVER HOST PORT`: do what stdin says, a scenario a line.

Each is answered by a line of JSON: {"done": true}, {"failed": traceback}, or, when the scenario
sleeps until somebody writes another line, {"sleep": true}.
"""

import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any

Aliases = Mapping[str, tuple[str, dict[str, Any]]]

DATABASE_ALIASES: Aliases = {
    # alias: the proxy's database, and how Django uses it
    "default": ("app", {}),
    "quick": ("quick", {}),
    "atomic": ("app", {"ATOMIC_REQUESTS": True}),
    "tokyo": ("app", {"TIME_ZONE": "Asia/Tokyo"}),
    "open_ended": ("quick", {"AUTOCOMMIT": False}),
    "healthy": ("quick", {"AUTOCOMMIT": False, "CONN_HEALTH_CHECKS": True}),
    "no_cursors": ("app", {"DISABLE_SERVER_SIDE_CURSORS": True}),
    "bound": ("app", {"OPTIONS": {"server_side_binding": True, "prepare_threshold": 0}}),
    "bound_tokyo": (
        "app",
        {
            "OPTIONS": {"server_side_binding": True, "prepare_threshold": 1},
            "TIME_ZONE": "Asia/Tokyo",
        },
    ),
}


def choose(driver: str) -> None:
    """Before Django is configured."""
    if driver == "psycopg2":
        # Django takes psycopg 3 wherever it is to be had
        sys.modules["psycopg"] = None  # type: ignore[assignment]


def configure(host: str, port: str, aliases: Aliases = DATABASE_ALIASES) -> None:
    import django
    from django.conf import settings

    databases: dict[str, Any] = {
        alias: {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": host,
            "PORT": port,
            "USER": "app",
            "NAME": name,
            "CONN_MAX_AGE": None,
            **more,
        }
        for alias, (name, more) in aliases.items()
    }
    settings.configure(
        DATABASES=databases,
        INSTALLED_APPS=["tests.system.django_site"],
        ROOT_URLCONF="tests.system.django_site.urls",
        MIDDLEWARE=[
            "txproxy.django.TagMiddleware",
            "tests.system.django_site.urls.leave_reads_open",
        ],
        ALLOWED_HOSTS=["testserver"],
        SECRET_KEY="none",
        USE_TZ=True,
        TIME_ZONE="UTC",
        DEBUG_PROPAGATE_EXCEPTIONS=True,
    )
    django.setup()


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def main() -> None:
    driver, host, port = sys.argv[1:]
    choose(driver)
    configure(host, port)
    from django.db import connection, connections

    from tests.system.django_site import scenarios, tagging

    assert connection.Database.__name__ == driver
    for line in sys.stdin:
        name = line.strip()
        try:
            getattr(scenarios if hasattr(scenarios, name) else tagging, name)()
        except Exception:  # noqa: BLE001 the parent raises it
            say(failed=traceback.format_exc())
        else:
            say(done=True)
        finally:
            connections.close_all()


if __name__ == "__main__":
    main()

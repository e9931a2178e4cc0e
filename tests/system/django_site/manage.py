"""`python -m tests.system.django_site.manage DRIVER HOST PORT COMMAND…`: the site's manage.py."""

import sys

from tests.system.django_site.__main__ import choose, configure


def main() -> None:
    driver, host, port, *command = sys.argv[1:]
    choose(driver)
    configure(host, port, {"default": ("app", {})})
    from django.core.management import execute_from_command_line
    from django.db import connection

    assert connection.Database.__name__ == driver
    execute_from_command_line(["manage.py", *command])


if __name__ == "__main__":
    main()

"""Other clients of the databases that the tests use.

Alone on a pool, a connection gets the same backend again and again, and what the proxy loses or
mixes up between backends would not be seen. So these take backends at random moments, each with
settings of its own that must neither get lost nor be seen by the tests.
"""

import random
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from django.db import connections

_SETTINGS: Final = {
    "timezone": ("Asia/Tokyo", "America/New_York"),
    "datestyle": ("German, DMY", "SQL, MDY"),
    "search_path": ("nowhere", "elsewhere"),
    "lock_timeout": ("11s", "12s"),
    "default_transaction_isolation": ("serializable", "repeatable read"),
}
_LONGEST: Final = 0.01  # seconds of a transaction, and between two


class Crowd:
    """`size` clients of each database, from `start` to `stop`, or to the end of the process.

    `report` is called with what goes wrong for one of them.
    """

    def __init__(self, size: int, report: Callable[[str], None]) -> None:
        self._size = size
        self._report = report
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for alias in connections:
            known = connections[alias].settings_dict
            if not known["NAME"].startswith("test_"):
                continue  # no test uses it: there is none
            where = {"host": known["HOST"], "port": known["PORT"], "user": known["USER"]}
            for number in range(self._size):
                arguments = (
                    connections[alias].Database,
                    {**where, "dbname": known["NAME"]},
                    {name: values[number % 2] for name, values in _SETTINGS.items()},
                )
                thread = threading.Thread(target=self._client, args=arguments, daemon=True)
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self, driver: Any, where: dict[str, Any], settings: dict[str, str]) -> None:
        try:
            connection = driver.connect(**where)
            try:
                self._work(connection, settings)
            finally:
                connection.close()
        except Exception:  # noqa: BLE001 it is reported
            self._report(traceback.format_exc())

    def _work(self, connection: Any, settings: dict[str, str]) -> None:
        connection.autocommit = True
        cursor = connection.cursor()
        for name, value in settings.items():
            cursor.execute(
                f"SET {name} = {value}" if name == "datestyle" else f"SET {name} = '{value}'"
            )
        chance = random.Random()
        while not self._over.is_set():
            cursor.execute("BEGIN")
            for name, value in settings.items():
                cursor.execute(f"SHOW {name}")
                found = cursor.fetchone()[0]
                assert found == value, f"{name} is {found}, and was set to {value}"
            time.sleep(chance.uniform(0, _LONGEST))
            cursor.execute("COMMIT")
            time.sleep(chance.uniform(0, _LONGEST))

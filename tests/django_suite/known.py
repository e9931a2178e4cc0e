"""Tests of Django's that come out otherwise with txproxy.django.sqlite3, and why that is right."""

from typing import Final

SQLITE: Final = {
    "delete_regress.tests.DeleteLockingTest.test_concurrent_delete": (
        "stock skips it, and it would fail there too: in a transaction that has counted rows, some"
        " are to be deleted when another has changed their number"
    ),
    "get_or_create.tests.UpdateOrCreateTransactionTests.test_creation_in_transaction": (
        "stock skips it: update_or_create() has the token from its SELECT on, so that no other"
        " thread can create the row in between, which this test does"
    ),
    "setUpClass (timezones.tests.ForcedTimeZoneDatabaseTests)": (
        "stock skips the whole class: one connection is all that its test databases allow"
    ),
    (
        "backends.sqlite.test_creation.TestDbSignatureTests"
        ".test_setup_worker_connection_respects_test_database_name"
    ): (
        "new in Django 6.1: a process of parallel tests that was not forked is to copy its clone"
        " into memory, also if that is a file; here it uses the file"
    ),
    "select_for_update.tests.SelectForUpdateTests.test_for_update_after_from": (
        "stock skips it: it wants FOR UPDATE in the middle of the statement, where SQLite has none"
    ),
}

"""Which of Python's own tests of `sqlite3` do not apply to txproxy.sqlite, each with its reason.

A key is a pattern (fnmatch) of MODULE.CLASS.TEST.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

_BACKUP = "the target of backup() is a connection of sqlite3's own, not another of the endpoint"
_BLOBS = "the blob is written; blobopen() reads, with readonly=True"
_CREATES = "the endpoint creates no file, and the test looks for it"
_DESERIALIZE = "deserialize() would replace a file that others use"
_FILE = "the file is opened, and locked, by sqlite3 in another process before the endpoint has it"
_FUNCTIONS = "in a transaction that writes, and in indexes and scripts, functions are the server's"
_HERE = "what this process is to do in a SELECT; the server reads"
_INSIDE = "about a class of the extension module"
_LIMIT = "a limit set here is one of the readers here; the server then answers"
_PRAGMA = "the endpoint knows no PRAGMA count_changes"
_PROGRESS = "what writes runs on the server"
_READONLY = "how the file is opened is the endpoint's matter"
_REINIT = "rows that have come already keep the text factory of their time"
_SPLIT = "the server reads the text behind the semicolon, and complains of that"
_TRACE = "what goes to the server is traced as it was written, without values"
_DECODE = "the server does not send text that is no text"
_WARNS = "about a module attribute that is no connection's"

EVERYWHERE: Final[Mapping[str, str]] = {
    "test_backup.BackupTests.*": _BACKUP,
    "test_dbapi.BlobTests.*": _BLOBS,
    "test_dbapi.ConnectionTests.test_connection_reinit": _REINIT,
    "test_dbapi.CursorTests.test_execute_multiple_statements": _SPLIT,
    "test_dbapi.CursorTests.test_execute_with_appended_comments": _SPLIT,
    "test_dbapi.ModuleTests.test_disallow_instantiation": _INSIDE,
    "test_dbapi.MultiprocessTests.*": _FILE,
    "test_dbapi.OpenTests.test_open_undecodable_uri": _CREATES,
    "test_dbapi.OpenTests.test_open_uri_readonly": _READONLY,
    "test_dbapi.OpenTests.test_open_with_undecodable_path": _CREATES,
    "test_dbapi.SerializeTests.*": _DESERIALIZE,
    "test_factory.TextFactoryTests.test_optimized_unicode": _WARNS,
    "test_hooks.ProgressTests.test_cancel_operation": _PROGRESS,
    "test_hooks.ProgressTests.test_error_in_progress_handler*": _PROGRESS,
    "test_hooks.ProgressTests.test_progress_handler_used": _PROGRESS,
    "test_hooks.TraceCallbackTests.test_trace_expanded_sql": _TRACE,
    "test_transactions.SpecialCommandTests.test_pragma": _PRAGMA,
    "test_regression.RegressionTests.test_executescript_step_through_select": _FUNCTIONS,
    "test_userfunctions.AggregateTests.*": _FUNCTIONS,
    "test_userfunctions.FunctionTests.test_func_deterministic": _FUNCTIONS,
    "test_userfunctions.FunctionTests.test_func_too_many_args": _LIMIT,
}

SERVER: Final[Mapping[str, str]] = {
    "test_hooks.CollationTests.test_collation_*": _HERE,
    "test_hooks.CollationTests.test_create_collation_bad_upper": _HERE,
    "test_hooks.ProgressTests.*": _HERE,
    "test_hooks.TraceCallbackTests.test_trace_bad_handler": _HERE,
    "test_hooks.TraceCallbackTests.test_trace_too_much_expanded_sql": _TRACE,
    "test_regression.RegressionTests.test_bpo37347": _HERE,
    "test_regression.RegressionTests.test_error_msg_decode_error": _DECODE,
    "test_regression.RegressionTests.test_table_lock_cursor_non_readonly_select": _HERE,
    "test_userfunctions.Authorizer*": _HERE,
    "test_userfunctions.FunctionTests.*": _HERE,
    "test_userfunctions.WindowFunctionTests.*": _HERE,
}


def why_not(test: str, reads: str) -> str:
    """Why a test does not apply with these reads; "": it does."""
    found = {**EVERYWHERE, **(SERVER if reads == "server" else {})}
    return next((why for pattern, why in found.items() if fnmatchcase(test, pattern)), "")

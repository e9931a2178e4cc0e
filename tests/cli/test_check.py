"""`txproxy check`, and the command line around it, on real files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configurations import MD5
from txproxy import __version__
from txproxy.cli import main
from txproxy.cli.check import describe
from txproxy.config import parse

CONFIGURATION = """\
[proxy]
listen = ["127.0.0.1:7000", "unix:/run/txproxy"]
shutdown_timeout = 0
cancel_on_disconnect = false

[databases.app]
host = "::1"
dbname = "real"
user = "web"
pool_size = 5
pool_mode = "session"
idle_transaction_action = "disconnect"
idle_transaction_timeout = "1500ms"
idle_transaction_timeout_max = "5min"

[databases."*"]
host = "/run/postgresql"
idle_transaction_action = "report"
query_timeout = 0.25

[users.ann]
pool_size = 3
query_timeout = "90s"
transaction_timeout = "2h"
client_idle_timeout = 0

[users.bob]
"""

MEANING = """\
{path} is a valid configuration.

the proxy
  listens on              127.0.0.1:7000
  listens on              /run/txproxy/.s.PGSQL.7000, mode 0700
  clients                 at most 10000
  TLS with clients        none
  TLS with servers        if the server can; its certificate is not looked at
  connecting to a server  at most 15s
  a server connection     closed after 10min without use; replaced after 1h
  a client that leaves    its statement runs to its end; at most 10s
  a rollback of ours      at most 5s
  shutting down           waits for transactions, no limit
  logs                    info and worse, as text, without literals
  counters                each 1min
  metrics                 not served

logins
  how                     trust: every client is who it says it is
  a login                 at most 1min
  on the console          nobody; over a unix socket txproxy, if it is who runs the proxy
  looking at it           nobody else

database app
  goes to                 [::1]:5432, database real, as user web
  logs in                 without a password
  pool                    at most 5 connections, lent for as long as a client stays
  waiting for one         at most 2min
  idle in a transaction   at most 1500ms, then the client is told 25P03 and disconnected; \
a client may set up to 5min for itself
  a statement             no limit
  a transaction           no limit
  a silent client         no limit
  a pinned client         no limit

any other database
  goes to                 /run/postgresql:5432, database of the name that the client gives, \
as the user that the client gives
  logs in                 with the password of the client's user, as far as it is known
  pool                    at most 20 connections for each user, lent for a transaction
  waiting for one         at most 2min
  idle in a transaction   at most 30s, then it is reported and left alone; \
a client may only shorten that
  a statement             at most 250ms
  a transaction           no limit
  a silent client         no limit
  a pinned client         no limit

user ann, in every database
  pool_size               3 connections
  query_timeout           90s
  transaction_timeout     2h
  client_idle_timeout     off

user bob, in every database
  nothing of its own      as in [proxy] and the databases
"""

FOR_PRODUCTION = f"""\
[proxy]
listen = ["0.0.0.0:7000", "unix:/run/txproxy"]
unix_socket_group = "web"
auth_type = "scram-sha-256"
auth_user = "asker"
auth_dbname = "auth"
admin_users = ["ann", "bob"]
stats_users = ["watch"]
client_tls_sslmode = "require"
client_tls_key_file = "/none/key"
client_tls_cert_file = "/none/cert"
server_tls_sslmode = "verify-full"
server_tls_key_file = "/none/key"
server_tls_cert_file = "/none/cert"
max_user_connections = 30
max_user_client_connections = 40
server_idle_timeout = 0
log_stats = false

[databases.app]
host = ["10.0.0.1", "10.0.0.2"]
user = "web"
password = "{MD5}"
min_pool_size = 2
reserve_pool_size = 3
max_db_connections = 50
max_db_client_connections = 60
server_lifetime = "2h"
auth_user = "other"

[databases.auth]
host = ["10.0.0.1", "10.0.0.2"]
load_balance_hosts = "disable"

[users.asker]
password = "hidden"

[users.ann]
password = "plain"
deferred_begin = false

[metrics]
listen = ["127.0.0.1:9127", "[::1]:9127"]
"""

ITS_MEANING = """\
the proxy
  listens on              0.0.0.0:7000
  listens on              /run/txproxy/.s.PGSQL.7000, mode 0700, group web
  clients                 at most 10000
  TLS with clients        for all; others are refused
  TLS with servers        always; the server's certificate must be signed and in its host's name, \
with a certificate of ours
  connecting to a server  at most 15s
  a server connection     kept, used or not; replaced after 1h
  a client that leaves    its statement is cancelled; at most 10s
  a rollback of ours      at most 5s
  shutting down           waits for transactions, at most 30s
  logs                    info and worse, as text, without literals
  counters                not logged
  metrics                 http://127.0.0.1:9127/metrics, http://[::1]:9127/metrics

logins
  how                     scram-sha-256: by password
  passwords               of 2 users, from here
  passwords of others     asked of database auth by asker
  a login                 at most 1min
  on the console          ann, bob; over a unix socket txproxy, if it is who runs the proxy
  looking at it           watch

database app
  goes to                 10.0.0.1:5432, 10.0.0.2:5432 (each in turn), database app, as user web
  logs in                 with an md5 hash from here
  passwords of others     asked by other
  pool                    at most 20 connections, lent for a transaction, 2 of them always open
  reserve                 3 more, for clients that have waited 5s
  a server connection     kept, used or not; replaced after 2h
  all its pools           at most 50 connections
  all pools of a user     at most 30 connections
  its clients             at most 60
  clients of one user     at most 40
  waiting for one         at most 2min
  idle in a transaction   at most 30s, then it is rolled back and the client is told 25P03; \
a client may only shorten that
  a statement             no limit
  a transaction           no limit
  a silent client         no limit
  a pinned client         no limit

database auth
  goes to                 10.0.0.1:5432, 10.0.0.2:5432 (the first that answers), database auth, \
as the user that the client gives
  logs in                 with the password of the client's user, as far as it is known
  pool                    at most 20 connections for each user, lent for a transaction
  all pools of a user     at most 30 connections
  clients of one user     at most 40
  waiting for one         at most 2min
  idle in a transaction   at most 30s, then it is rolled back and the client is told 25P03; \
a client may only shorten that
  a statement             no limit
  a transaction           no limit
  a silent client         no limit
  a pinned client         no limit

user asker, in every database
  password                a plain password

user ann, in every database
  password                a plain password
  deferred_begin          false
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.toml"
    path.write_text(CONFIGURATION)
    return path


def test_check_says_what_the_configuration_means(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr() == (MEANING.format(path=path), "")


def test_check_says_what_a_configuration_for_production_means() -> None:
    assert "\n".join([*describe(parse(FOR_PRODUCTION, "x"))][2:]) + "\n" == ITS_MEANING


@pytest.mark.parametrize(
    ("side", "mode"), [("client", "require"), ("client", "verify-full"), ("server", "prefer")]
)
def test_certificates_that_are_not_there(
    side: str, mode: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = "".join(f'{side}_tls_{name}_file = "/none"\n' for name in ("key", "cert", "ca"))
    path.write_text(f'[proxy]\n{side}_tls_sslmode = "{mode}"\n{files}[databases."*"]\n')
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{side}_tls_")
    assert "/none" in said.err


def test_check_of_a_pgbouncer_ini_says_what_is_not_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pgbouncer.ini"
    path.write_text("[databases]\n* = \n[pgbouncer]\nauth_user = x\npidfile = y\n")
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        f"{path} is a valid configuration.",
        "",
        f"{path}:5: pidfile: not written: the proxy does not leave its terminal",
        "",
    ]


def test_check_reads_proxy_toml_in_the_working_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(path.parent)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("proxy.toml is a valid configuration.")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_wrong_configuration_is_one_line_and_exit_code_2(
    command: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("[proxy]\nlistn = []\n")
    assert main([command, str(path)]) == 2
    said = f"{path}:2: proxy.listn: unknown key; did you mean listen?\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("arguments", [[], ["sing"], ["check", "a", "b"], ["demo", "--twice"]])
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: txproxy")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | environment
    )


def test_the_installed_command_and_the_module_are_the_same() -> None:
    script = run(str(Path(sys.executable).parent / "txproxy"), "--version")
    module = run(sys.executable, "-m", "txproxy", "--version")
    assert (script.returncode, script.stdout) == (0, f"txproxy {__version__}\n")
    assert (module.returncode, module.stdout) == (script.returncode, script.stdout)


def test_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    missing = run(sys.executable, "-m", "txproxy", "check", str(tmp_path / "none.toml"))
    assert missing.returncode == 2
    assert missing.stderr == f"{tmp_path}/none.toml: No such file or directory\n"


def test_a_reader_that_has_had_enough_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text('[databases."*"]\nhost = "127.0.0.1"\n', encoding="utf-8")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        ended = subprocess.run(
            [sys.executable, "-m", "txproxy", "check", str(path)],
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


FILES = """\
[proxy]
listen = ["unix:/run/txproxy"]

[sqlite.notes]
path = "/srv/notes.db"
allow_create = true
peer_uids = [0, 33]
begin = "immediate"
busy_timeout = "20s"
idle_writer_timeout = 0
idle_transaction_timeout = "1min"
query_timeout = "10s"
commit_train = true
checkpoint = "external"
functions = ["site.sql:register"]
extensions = ["/usr/lib/pcre.so"]

[sqlite."*"]
directory = "/srv/data"
journal_mode = "delete"
"""

THEIR_MEANING = """\
SQLite file notes
  is                      /srv/notes.db
  if it is not there      it is made
  processes of users      0, 33
  journal                 wal
  a plain BEGIN           waits for its turn to write at once
  waiting to write        at most 20s
  asleep as others wait   no limit, if it has written
  idle in a transaction   at most 1min, if nobody waits
  a statement             at most 10s
  commits                 share a sync: others may see one before it is durable
  checkpoints             left to another program
  functions               site.sql:register
  extensions              /usr/lib/pcre.so

any other SQLite file
  is                      the file of that name directly inside /srv/data
  processes of users      root, and 1234, who runs this
  journal                 delete
  a plain BEGIN           waits for its turn at its first write
  waiting to write        at most 5s
  asleep as others wait   at most 2s, if it has written
  idle in a transaction   at most 30s, if nobody waits
  a statement             no limit
  checkpoints             ours"""


def test_check_says_what_holds_for_sqlite_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1234)
    assert "\n".join(describe(parse(FILES, "x"))).endswith(THEIR_MEANING)

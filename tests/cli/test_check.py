"""`txproxy check`, and the command line around it, on real files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from txproxy import __version__
from txproxy.cli import main

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
  authentication          trust: every client is who it says it is
  clients                 at most 10000
  a client's login        at most 1 min
  connecting to a server  at most 15 s
  a client that leaves    its statement runs to its end; at most 10 s
  a rollback of ours      at most 5 s
  shutting down           waits for transactions, no limit
  logs                    info and worse, as text, without literals

database app
  goes to                 [::1]:5432, database real, as user web
  pool                    at most 5 connections for each user, lent for as long as a client stays
  waiting for one         at most 2 min
  idle in a transaction   at most 1.5 s, then the client is told 25P03 and disconnected; \
a client may set up to 5 min for itself
  a statement             no limit
  a transaction           no limit
  a silent client         no limit

any other database
  goes to                 /run/postgresql:5432, database of the name that the client gives, \
as the user that the client gives
  pool                    at most 20 connections for each user, lent for a transaction
  waiting for one         at most 2 min
  idle in a transaction   at most 30 s, then it is reported and left alone; \
a client may only shorten that
  a statement             at most 250 ms
  a transaction           no limit
  a silent client         no limit

user ann, in every database
  pool_size               3 connections
  query_timeout           90 s
  transaction_timeout     2 h
  client_idle_timeout     off

user bob, in every database
  nothing of its own      as in [proxy] and the databases
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

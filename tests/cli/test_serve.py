"""`txproxy serve` as an operator meets it: what it says, how it ends, with which exit code."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    USER,
    Backend,
    ask,
    backends,
    pids,
    prepare,
    wait_until,
)
from tests.system.wire import Wire
from txproxy.cli.embedded import EmbeddedPostgres


class Serve:
    """`txproxy serve` with this configuration, from `with` to the end of its block."""

    def __init__(self, directory: Path, configuration: str) -> None:
        self.config = directory / "proxy.toml"
        self.config.write_text(configuration)
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "txproxy", "serve", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, word: str) -> str:
        """The first line of its log that has this word, once it is there."""

        def found() -> list[str]:
            return [line for line in self.lines if word in line]

        with self._news:
            self._news.wait_for(lambda: found() or not self._reader.is_alive(), wire.PATIENCE)
            assert found(), self.lines
            return found()[0]

    def signal(self, signum: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(signum)

    def ends(self) -> int:
        """Its exit code, once it has ended; it has said nothing but its log."""
        code = self.process.wait(wire.PATIENCE)
        self._reader.join(wire.PATIENCE)
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        assert not [line for line in self.lines if "Traceback" in line], self.lines
        return code


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        found: int = probe.getsockname()[1]
        return found


def configuration(port: int, server: EmbeddedPostgres | None = None, **settings: Any) -> str:
    settings = {"listen": [f"127.0.0.1:{port}"], **settings}
    lines = ["[proxy]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    lines += [f"[databases.{DATABASE}]", "pool_size = 2"]
    if server is not None:
        lines.append(f"port = {server.port}")
    return "\n".join([*lines, ""])


@pytest.fixture
def served(tmp_path: Path, port: int, postgres: EmbeddedPostgres) -> Iterator[Serve]:
    """A proxy that is ready, and waits for its transactions for long."""
    prepare(postgres)
    # those who have only read are to hold their backends, as if they had written
    settings = {"shutdown_timeout": "5min", "early_release": "off"}
    with Serve(tmp_path, configuration(port, postgres, **settings)) as serve:
        serve.wait_for("ready")
        yield serve


def connect(port: int, **more: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(host="127.0.0.1", port=port, user=USER, dbname=DATABASE, **more)


def log_in(port: int) -> Wire:
    return Wire.log_in(("127.0.0.1", port), user=USER, database=DATABASE)


# What does not start.


def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Serve(tmp_path, configuration(port)) as serve:
            assert serve.ends() == 1
            assert serve.lines == [
                f"txproxy: cannot listen on 127.0.0.1:{port}: Address already in use"
            ]


def test_an_address_that_is_not_ours_to_have(tmp_path: Path, port: int) -> None:
    """The second of two: the first is let go again."""
    listen = [f"127.0.0.1:{port}", f"unix:{tmp_path}/missing"]
    with Serve(tmp_path, configuration(port, listen=listen)) as serve:
        assert serve.ends() == 1
        [line] = serve.lines
        assert line.startswith(f"txproxy: cannot listen on {tmp_path}/missing")
        assert line.endswith("No such file or directory")


def test_a_unix_socket_that_is_in_use(tmp_path: Path, port: int) -> None:
    listen = [f"127.0.0.1:{port}", f"unix:{tmp_path}"]
    path = str(tmp_path / f".s.PGSQL.{port}")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(path)
        taken.listen()
        with Serve(tmp_path, configuration(port, listen=listen)) as serve:
            assert serve.ends() == 1
            [line] = serve.lines
            assert path in line
            assert "Address already in use" in line
        # it is still theirs
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_file_in_the_way_of_a_unix_socket(tmp_path: Path, port: int) -> None:
    path = tmp_path / f".s.PGSQL.{port}"
    path.write_text("precious")
    with Serve(tmp_path, configuration(port, listen=[f"unix:{tmp_path}"])) as serve:
        # the port of the socket is 6432 without a TCP address
        serve.wait_for("ready")
        serve.signal()
        assert serve.ends() == 0
    listen = [f"127.0.0.1:{port}", f"unix:{tmp_path}"]
    with Serve(tmp_path, configuration(port, listen=listen)) as serve:
        assert serve.ends() == 1
        assert len(serve.lines) == 1
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[proxy]\npool_mod = 'session'\n[databases.app]\n", "proxy.pool_mod"),
        ("[proxy]\n\nlisten = 5\n[databases.app]\n", "proxy.listen"),
        ("[proxy]\n[databases.app]\nport = 'x'\n", "databases.app.port"),
        ("[proxy]\n[databases.app]\nport = = 1\n", ""),
    ],
)
def test_a_configuration_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    line = {"proxy.pool_mod": 2}.get(said, 3)
    with Serve(tmp_path, text) as serve:
        assert serve.ends() == 2
        assert len(serve.lines) == 1
        assert serve.lines[0].startswith(f"{serve.config}:{line}: {said}")


def test_no_configuration(tmp_path: Path) -> None:
    with Serve(tmp_path, "") as serve:
        assert serve.ends() == 2
        assert len(serve.lines) == 1


# Its log.


def test_the_log_as_text(served: Serve, port: int) -> None:
    assert f" INFO ready listen=127.0.0.1:{port}" in served.wait_for("ready")
    served.signal()
    assert served.ends() == 0
    assert "INFO stopped" in served.lines[-1]


def test_the_log_as_json(tmp_path: Path, port: int, postgres: EmbeddedPostgres) -> None:
    prepare(postgres)
    text = configuration(
        port,
        postgres,
        log_format="json",
        log_level="debug",
        idle_transaction_timeout="50ms",
        early_release="off",
    )
    with Serve(tmp_path, text) as serve:
        ready = json.loads(serve.wait_for("ready"))
        assert ready["listen"] == f"127.0.0.1:{port}"
        assert ready["level"] == "info"
        assert abs(ready["time"] - time.time()) < 3600
        with connect(port, application_name='odd "name"\n') as client:
            client.execute("SELECT 'secret', 1234 /* route='/x' */")
            reaped = json.loads(serve.wait_for("reaped"))
            client.rollback()
        assert reaped["database"] == DATABASE
        assert reaped["user"] == USER
        assert "secret" not in str(reaped)
        assert "1234" not in reaped["statement"]
        assert reaped["tags"] == {"route": "/x"}
        serve.signal()
        assert serve.ends() == 0
        events = [json.loads(line) for line in serve.lines]
    assert events[-1]["event"] == "stopped"
    [totals] = [event for event in events if event["event"] == "totals"]
    assert totals["reaped"] == 1


# Its end.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_who_is_in_no_transaction_is_told(served: Serve, port: int, signum: signal.Signals) -> None:
    with log_in(port) as idle, Wire(("127.0.0.1", port)) as silent:
        idle.value("SELECT 1")
        served.signal(signum)
        [said] = idle.rest()
        assert (said.severity, said.sqlstate) == ("FATAL", "57P01")
        assert wire.kinds(silent.rest()) in {"", "E"}
        assert served.ends() == 0


def is_asleep(backend: Backend) -> bool:
    return "pg_sleep" in backend.query and backend.state == "active"


def test_transactions_are_waited_for(served: Serve, port: int, postgres: EmbeddedPostgres) -> None:
    with connect(port) as client, log_in(port) as running:
        client.execute("SELECT 1")
        running.send(wire.query("SELECT 'done' FROM pg_sleep(2)"))
        assert wait_until(lambda: [each for each in backends(postgres) if is_asleep(each)], bool)
        served.signal()
        served.wait_for("draining")
        with pytest.raises(psycopg.OperationalError):
            connect(port)
        # a statement that runs is answered, then its client is told
        answer = running.rest()
        assert wire.rows(answer) == [["done"]]
        assert answer[-1].sqlstate == "57P01"
        ask(client)
        assert served.process.poll() is None
        client.commit()
        assert served.ends() == 0
    assert wait_until(lambda: pids(postgres), lambda found: not found) == set()


def test_who_waits_for_a_backend_is_waited_for(served: Serve, port: int) -> None:
    with connect(port) as one, connect(port) as two, log_in(port) as queued:
        for each in (one, two):
            each.execute("SELECT 1")
        queued.send(wire.query("SELECT 'served'"))
        log_in(port).close()
        served.signal()
        served.wait_for("draining")
        one.commit()
        answer = queued.rest()
        assert wire.rows(answer) == [["served"]]
        assert answer[-1].sqlstate == "57P01"
        two.rollback()
        assert served.ends() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(
    served: Serve, port: int, signum: signal.Signals, postgres: EmbeddedPostgres
) -> None:
    with log_in(port) as client, log_in(port) as running:
        client.ask(wire.query("BEGIN"))
        client.value("SELECT 1")
        running.send(wire.query("SELECT pg_sleep(1000)"))
        served.signal()
        served.wait_for("draining")
        served.signal(signum)
        for each in (client, running):
            assert each.rest()[-1].sqlstate == "57P01"
        assert served.ends() == 0
    assert wait_until(lambda: pids(postgres), lambda found: not found) == set()


def test_shutdown_timeout(tmp_path: Path, port: int, postgres: EmbeddedPostgres) -> None:
    prepare(postgres)
    with (
        Serve(tmp_path, configuration(port, postgres, shutdown_timeout="200ms")) as serve,
        contextlib.ExitStack() as stack,
    ):
        serve.wait_for("ready")
        client = stack.enter_context(log_in(port))
        client.ask(wire.query("BEGIN"))
        client.value("SELECT 1")
        serve.signal()
        assert client.rest()[-1].sqlstate == "57P01"
        assert serve.ends() == 0


def test_who_forgot_to_commit_does_not_hold_it_up(
    tmp_path: Path, port: int, postgres: EmbeddedPostgres
) -> None:
    """It is reaped meanwhile, holds nothing any more, and is told."""
    prepare(postgres)
    text = configuration(
        port,
        postgres,
        shutdown_timeout="5min",
        idle_transaction_timeout="300ms",
        early_release="off",
    )
    with Serve(tmp_path, text) as serve:
        serve.wait_for("ready")
        with log_in(port) as client:
            client.ask(wire.query("BEGIN"))
            client.value("SELECT 1")
            serve.signal()
            assert client.rest()[-1].sqlstate == "57P01"
            assert serve.ends() == 0


def test_it_starts_again_on_the_same_port(
    served: Serve, tmp_path: Path, port: int, postgres: EmbeddedPostgres
) -> None:
    """Connections of the one before, in whatever state, are in nobody's way."""
    with log_in(port):
        served.process.kill()
        served.process.wait()
        with Serve(tmp_path, configuration(port, postgres)) as again:
            again.wait_for("ready")
            with connect(port) as client:
                ask(client)
                client.rollback()
            again.signal()
            assert again.ends() == 0


# Unix sockets.


@pytest.mark.parametrize("mode", ["0700", "0770", "0777"])
def test_a_unix_socket(tmp_path: Path, port: int, postgres: EmbeddedPostgres, mode: str) -> None:
    prepare(postgres)
    listen = [f"127.0.0.1:{port}", f"unix:{tmp_path}"]
    text = configuration(port, postgres, listen=listen, unix_socket_mode=mode)
    path = tmp_path / f".s.PGSQL.{port}"
    with Serve(tmp_path, text) as serve:
        assert str(path) in serve.wait_for("ready")
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        with psycopg.connect(host=str(tmp_path), port=port, user=USER, dbname=DATABASE) as client:
            ask(client)
        serve.signal()
        assert serve.ends() == 0
    assert not path.exists()


def test_a_unix_socket_that_was_left_behind(tmp_path: Path, port: int) -> None:
    """By a proxy that was killed: it is replaced."""
    listen = [f"127.0.0.1:{port}", f"unix:{tmp_path}"]
    path = tmp_path / f".s.PGSQL.{port}"
    for _ in range(2):
        with Serve(tmp_path, configuration(port, listen=listen)) as serve:
            serve.wait_for("ready")
            os.kill(serve.process.pid, signal.SIGKILL)
            serve.process.wait()
        assert path.exists()

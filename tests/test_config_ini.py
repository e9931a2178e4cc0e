"""Each test writes a pgbouncer.ini and reads what becomes of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.configurations import MD5, SCRAM, pool, session
from txproxy.config import SETTINGS, Config, Secret, TcpAddress, UnixAddress, load
from txproxy.errors import ConfigError

TRUST = "auth_type = trust\n"
APP = "[databases]\napp = host=127.0.0.1\n"

# As distributions ship it, with what somebody who uses it switches on.
SHIPPED = Path(__file__).parent / "pgbouncer.ini"

Ini = Callable[..., str]


@pytest.fixture
def ini(tmp_path: Path) -> Ini:
    """Writes a file, which nobody else can read, unless told otherwise; returns its path."""

    def write(text: str, name: str = "pgbouncer.ini", mode: int = 0o600) -> str:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    return write


@pytest.fixture
def wrong(ini: Ini) -> Callable[[str], str]:
    """The error of a file, from its line on."""

    def find(text: str) -> str:
        path = ini(text)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(path).removeprefix(":").removeprefix(" ")

    return find


Wrong = Callable[[str], str]


def with_app(lines: str) -> str:
    return f"[pgbouncer]\n{lines}\n{APP}"


# The whole file


def test_the_file_that_is_shipped(
    ini: Ini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ini(f'"user1" "{MD5}"\n"baz" "bar"\n', "userlist.txt")
    monkeypatch.chdir(tmp_path)
    path = ini(SHIPPED.read_text())
    config = load(path)
    assert config.path == path
    assert config.listen == (
        TcpAddress("localhost", 6432),
        UnixAddress("/var/run/postgresql", 6432),
    )
    assert config.admin_users == ("user2", "someadmin", "otheradmin")
    assert config.stats_users == ("stats", "root")
    assert (config.max_client_conn, config.server_idle_timeout) == (200, 60.5)
    assert (config.client_tls.ciphers, config.tcp.user_timeout) == ("default", 1.5)

    assert list(config.databases) == ["foodb", "bardb", "forcedb", "nondefaultdb", "*"]
    assert pool(config, "foodb").hosts == ("/var/run/postgresql",)
    assert pool(config, "bardb").dbname == "bazdb"
    forced = pool(config, "forcedb", "user1")
    assert (forced.server_user, forced.password, forced.port) == ("baz", Secret("foo"), 300)
    assert forced.parameters == (("client_encoding", "UNICODE"), ("datestyle", "ISO"))
    assert forced.connect_query == "SELECT 1"
    custom = pool(config, "nondefaultdb")
    assert (custom.pool_size, custom.reserve_pool_size) == (50, 10)
    assert pool(config, "whatever").hosts == ("testserver",)

    assert session(config, "foodb", "user1").pool_mode == "transaction"
    assert session(config, "foodb", "user2").pool_mode == "session"
    assert pool(config, "foodb", "user1").max_user_connections == 10
    assert pool(config, "foodb", "user1").password == Secret(MD5)
    lines = SHIPPED.read_text().splitlines()
    noted = [lines[int(note.split(":")[1]) - 1] for note in config.notes]
    assert [line.split(" =")[0] for line in noted] == [
        "logfile",
        "pidfile",
        "server_reset_query",
        "ignore_startup_parameters",
    ]


def test_what_pgbouncers_users_expect_of_what_they_left_out(ini: Ini) -> None:
    users = ini(f'"ann" "{MD5}"\n', "userlist.txt")
    config = load(ini(f"{APP}[users]\n[pgbouncer]\nauth_file={users}"))
    assert config.listen == (UnixAddress("/tmp", 6432),)
    assert config.auth_type == "md5"
    assert config.pool_mode == "session"
    assert config.max_client_conn == 100
    assert config.default_pool_size == 20
    assert config.idle_transaction_timeout == 0
    assert config.unix_socket_mode == 0o777
    assert config.query_wait_timeout == 120
    assert config.notes == ()


# Syntax


def test_comments_blanks_and_what_stands_twice(ini: Ini) -> None:
    config = load(
        ini(
            "# a comment\r\n  ; another\n\n[pgbouncer] ; not a comment in a value\n"
            "  auth_type=Trust\n\tdefault_pool_size   =   3   \n default_pool_size = 4\n"
            "[databases]\r\napp = host=one\napp = host=two dbname = x\n"
        )
    )
    assert config.default_pool_size == 4
    assert pool(config).hosts == ("two",)
    assert pool(config).dbname == "x"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a-b.c_1 = ", "a-b.c_1"),
        ('"my db" = ', "my db"),
        ('"say ""hi""" =', 'say "hi"'),
        ('"*" =', "*"),
        ('"ü"=', "ü"),
    ],
)
def test_names_of_databases(ini: Ini, line: str, name: str) -> None:
    config = load(ini(f"[pgbouncer]\n{TRUST}[databases]\n{line}host=x\n"))
    assert list(config.databases) == [name]


@pytest.mark.parametrize(
    ("written", "query"),
    [
        ("connect_query='SELECT 1'", "SELECT 1"),
        ("connect_query = 'SELECT ''a b'''  port=1", "SELECT 'a b'"),
        ("port=1 connect_query=SELECT", "SELECT"),
        ("connect_query=it's", "it's"),
        ("connect_query='a=b'", "a=b"),
    ],
)
def test_values_in_connection_strings(ini: Ini, written: str, query: str) -> None:
    config = load(ini(f"[pgbouncer]\n{TRUST}[databases]\napp = {written}\n"))
    assert config.databases["app"].connect_query == query


@pytest.mark.parametrize("host", ["a,b", "a, b", "'a, b'", "a,b,"])
def test_a_list_of_hosts(ini: Ini, wrong: Wrong, host: str) -> None:
    text = f"[pgbouncer]\n{TRUST}[databases]\napp = host={host} load_balance_hosts=disable\n"
    if host == "a, b":
        assert wrong(text).startswith("4: databases.app: must be key=value pairs")
    else:
        assert pool(load(ini(text))).hosts == ("a", "b")


def test_included_files(ini: Ini) -> None:
    inner = ini("log_stats = 0\n[databases]\none = host=x\n", "inner")
    outer = ini(f"default_pool_size = 7\n%include {inner}\ntwo = host=y\n", "outer")
    config = load(ini(f"[pgbouncer]\n{TRUST}%include {outer}\nthree = host=z\nlog = \n"))
    assert (config.log_stats, config.default_pool_size) == (False, 7)
    assert list(config.databases) == ["one", "two", "three", "log"]


def test_included_files_are_looked_for_in_the_working_directory(
    ini: Ini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    ini(APP, "databases.ini")
    path = ini(f"[pgbouncer]\n{TRUST}%include databases.ini\n", "etc/pgbouncer.ini")
    monkeypatch.chdir(tmp_path)
    assert list(load(path).databases) == ["app"]


def test_errors_name_the_file_in_which_they_are(ini: Ini) -> None:
    inner = ini("\n\npkt_bof = 1\n", "inner")
    with pytest.raises(ConfigError) as caught:
        load(ini(f"[pgbouncer]\n%include {inner}\n"))
    assert str(caught.value) == f"{inner}:3: pkt_bof: unknown key; did you mean pkt_buf?"


def test_files_that_include_themselves(ini: Ini, tmp_path: Path) -> None:
    path = ini(f"%include {tmp_path}/pgbouncer.ini\n")
    with pytest.raises(ConfigError, match="too many files inside files"):
        load(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("auth_type = trust\n", "1: belongs in a section"),
        ("[pgbouncer\n", "1: must be key = value"),
        ("[pgbounce]\n", "1: [pgbounce]: unknown section; did you mean pgbouncer?"),
        ("[pgbouncer]\n\nauth_type\n", "3: must be key = value"),
        ("[pgbouncer]\n= trust\n", "2: must be key = value"),
        ("[databases]\nmy db = host=x\n", "2: must be key = value"),
        ('[databases]\n"" = host=x\n', '2: databases."": is no name'),
        ("[databases]\napp = host\n", "2: databases.app: must be key=value pairs"),
        ("[databases]\napp = host=\n", "2: databases.app: must be key=value pairs"),
        ("[databases]\napp = host='x\n", "2: databases.app: must be key=value pairs"),
        ("[databases]\napp = host='x'y\n", "2: databases.app: must be key=value pairs"),
        ("[databases]\napp = host=''\n", "2: databases.app.host: must be a host"),
        ("%include /none/such\n", "/none/such: No such file"),
    ],
)
def test_wrong_syntax(wrong: Wrong, text: str, problem: str) -> None:
    assert wrong(text).startswith(problem)


# Settings


@pytest.mark.parametrize(
    ("lines", "name", "value"),
    [
        ("query_timeout = 1.5", "query_timeout", 1.5),
        ("query_timeout = 5min", "query_timeout", 300.0),
        ("log_connections = 0", "log_connections", False),
        ("log_connections = 1", "log_connections", True),
        ("pool_mode = TRANSACTION", "pool_mode", "transaction"),
        ("unix_socket_mode = 0770", "unix_socket_mode", 0o770),
        ("tcp_user_timeout = 250", "tcp_user_timeout", 0.25),
        ("server_tls_ciphers = normal", "server_tls_ciphers", "default"),
        ("server_tls_ciphers = all", "server_tls_ciphers", "ALL"),
        ("server_tls_ciphers = HIGH", "server_tls_ciphers", "HIGH"),
        ("server_tls_protocols = legacy", "server_tls_protocols", "all"),
        ("admin_users =", "admin_users", ()),
        ("auth_user =", "auth_user", ""),
        ("idle_transaction_action = report", "idle_transaction_action", "report"),
        ("server_login_retry = 15", "server_login_retry", 15.0),
    ],
)
def test_settings(ini: Ini, lines: str, name: str, value: object) -> None:
    assert getattr(load(ini(with_app(TRUST + lines))), name) == value


def test_every_setting_of_the_proxy_is_known(ini: Ini) -> None:
    for setting in SETTINGS:
        if "proxy" in setting.tables and setting.name not in ("listen", "auth_type"):
            load(ini(with_app(f"{TRUST}{setting.name} =")))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("query_timout = 1", "3: query_timout: unknown key; did you mean query_timeout?"),
        ("listen = 127.0.0.1:1", "3: listen: unknown key; did you mean listen_"),
        ("auth_fil = x", "3: auth_fil: unknown key; did you mean auth_file?"),
        ("query_timeout = soon", "3: query_timeout: must be a duration"),
        ("query_timeout = -1", "3: query_timeout: must be a duration"),
        ("default_pool_size = 010", "3: default_pool_size: must be a whole number"),
        ("default_pool_size = 20 ; or so", "3: default_pool_size: must be a whole number"),
        ("unix_socket_mode = 777", "3: unix_socket_mode: must be octal, with a 0 in front"),
        ("log_stats = 2", "3: log_stats: must be true or false"),
        ("listen_port = 0", "3: listen_port: must be a whole number from 1"),
        ("listen_addr = 127.0.0.1,127.0.0.1", "3: listen_addr: 127.0.0.1:6432 is listed twice"),
        ("listen_addr = 10.0.0.1", "3: listen_addr: 10.0.0.1:6432 is open to others"),
        ("unix_socket_dir = @x", "3: unix_socket_dir: must name a directory from the root"),
        ("unix_socket_dir =", "3: unix_socket_dir: there is nowhere to listen"),
        ("client_tls_sslmode = require", '3: client_tls_sslmode: "require" needs client_tls_key_'),
        ("auth_query = SELECT 1", "3: auth_query: needs auth_user"),
    ],
)
def test_wrong_settings(wrong: Wrong, line: str, problem: str) -> None:
    assert wrong(with_app(TRUST + line)).startswith(problem)


@pytest.mark.parametrize(
    ("section", "line", "problem"),
    [
        ("databases", "app = hots=x", "databases.app.hots: unknown key; did you mean host?"),
        ("databases", "app = port=0", "databases.app.port: must be a whole number"),
        ("databases", "app = pool_size=-1", "databases.app.pool_size: must be a whole"),
        ("databases", "app = password_file=x", "databases.app.password_file: unknown key"),
        ("databases", "app = logfile=x", "databases.app.logfile: unknown key"),
        ("databases", "app = pool_mode=statement", "databases.app.pool_mode: "),
        ("databases", "app = host=@x", "databases.app.host: must not be an abstract"),
        ("databases", "pgbouncer = host=x", "databases.pgbouncer: is the console's name"),
        ("databases", "app = host=/tmp port=6432", "databases.app: leads to the proxy itself"),
        ("users", "ann = user=x", "users.ann.user: unknown key"),
        ("users", "ann = application_name=x", "users.ann.application_name: unknown key"),
        ("users", "ann = query_timeout=x", "users.ann.query_timeout: must be a duration"),
        ("users", "ann = idle_transaction_timeout_max=1s", "users.ann"),
    ],
)
def test_wrong_settings_of_databases_and_users(
    wrong: Wrong, section: str, line: str, problem: str
) -> None:
    if "_max" in line:
        line += " idle_transaction_timeout=2s"
    text = f"[pgbouncer]\n{TRUST}[{section}]\n{line}\n"
    said = wrong(text + ("" if section == "databases" else APP))
    if "leads" in problem:
        assert "leads to the proxy itself" in said
    else:
        assert said.startswith(f"4: {problem}")


def test_no_database(wrong: Wrong) -> None:
    assert wrong(f"[pgbouncer]\n{TRUST}") == "[databases]: no database is configured"


def test_a_database_without_a_host_where_there_are_no_unix_sockets(wrong: Wrong) -> None:
    text = f"[pgbouncer]\n{TRUST}unix_socket_dir =\nlisten_addr = ::1\n[databases]\napp =\n"
    assert wrong(text) == "6: databases.app: has no host, and there is no unix_socket_dir"


# Where it listens


@pytest.mark.parametrize(
    ("lines", "addresses"),
    [
        ("", [UnixAddress("/tmp", 6432)]),
        ("listen_port = 7000", [UnixAddress("/tmp", 7000)]),
        ("listen_addr =\nunix_socket_dir=/x", [UnixAddress("/x", 6432)]),
        ("listen_addr = localhost\nunix_socket_dir=", [TcpAddress("localhost", 6432)]),
        (
            "listen_addr = 127.0.0.1, ::1\nlisten_port = 1\nunix_socket_dir = /x",
            [TcpAddress("127.0.0.1", 1), TcpAddress("::1", 1), UnixAddress("/x", 1)],
        ),
    ],
)
def test_listen(ini: Ini, lines: str, addresses: list[TcpAddress | UnixAddress]) -> None:
    assert load(ini(with_app(TRUST + lines))).listen == tuple(addresses)


def test_listen_everywhere(ini: Ini) -> None:
    lines = "listen_addr = *\nunix_socket_dir =\nauth_type = md5\nauth_user = x"
    listen = load(ini(with_app(lines))).listen
    every = (TcpAddress("0.0.0.0", 6432), TcpAddress("::", 6432))
    # on a system without IPv6 only the first
    assert listen in (every, every[:1])


# Passwords


@pytest.mark.parametrize(
    ("line", "name", "text"),
    [
        (f'"ann" "{MD5}"', "ann", MD5),
        (f'  "ann"  "{SCRAM}" and what not', "ann", SCRAM),
        ('"ann" "plain"', "ann", "plain"),
        ('"a ""b""" "c""d"', 'a "b"', 'c"d'),
        ('"ann" "it; is # plain"', "ann", "it; is # plain"),
    ],
)
def test_auth_file(ini: Ini, line: str, name: str, text: str) -> None:
    users = ini(f"; a comment\n\n{line}\r\n", "userlist.txt")
    config = load(ini(with_app(f"auth_file = {users}")))
    assert {user.name: user.password for user in config.users.values()} == {name: Secret(text)}


def test_a_user_without_a_secret_is_known_and_cannot_log_in(ini: Ini, wrong: Wrong) -> None:
    users = ini('"ann" ""\n', "userlist.txt")
    assert wrong(with_app(f"auth_file = {users}")).startswith("auth_type: nobody could log in")
    config = load(ini(with_app(f"{TRUST}auth_file = {users}")))
    assert config.users["ann"].password is None


@pytest.mark.parametrize("line", ["ann plain", '"ann"', '"ann" "plain', '"ann" plain', "# comment"])
def test_a_broken_auth_file(ini: Ini, line: str) -> None:
    users = ini(f"\n{line}\n", "userlist.txt")
    with pytest.raises(ConfigError) as caught:
        load(ini(with_app(f"auth_file = {users}")))
    assert str(caught.value) == f'{users}:2: must be "user" "secret"'


def test_an_auth_file_that_is_not_there(wrong: Wrong) -> None:
    assert wrong(with_app("auth_file = /none/such")) == "/none/such: No such file or directory"


def test_a_plain_password_that_others_can_read(ini: Ini) -> None:
    users = ini(f'"ann" "{SCRAM}"\n"bob" "{MD5}"\n"eve" "plain"\n', "userlist.txt", mode=0o644)
    with pytest.raises(ConfigError) as caught:
        load(ini(with_app(f"auth_file = {users}")))
    assert str(caught.value).startswith(f"{users}:3: users.eve: a plain password is in {users},")

    path = ini(f"[pgbouncer]\n{TRUST}[databases]\napp = user=x password=plain\n", mode=0o644)
    with pytest.raises(ConfigError) as caught:
        load(path)
    said = f"{path}:4: databases.app.password: a plain password is in {path},"
    assert str(caught.value).startswith(said)


def test_what_is_not_plain_may_be_read(ini: Ini) -> None:
    users = ini(f'"ann" "{SCRAM}"\n"bob" "{MD5}"\n', "userlist.txt", mode=0o644)
    path = ini(with_app(f"auth_file = {users}") + f"b = user=x password={MD5}\n", mode=0o644)
    assert len(load(path).users) == 2


def test_a_password_without_a_user_is_nobodys(ini: Ini) -> None:
    path = ini(f"[pgbouncer]\n{TRUST}[databases]\napp = password=plain\n")
    config = load(path)
    assert pool(config).password is None
    assert config.notes[1:] == (
        f"{path}:4: databases.app.password: is nobody's: it counts only together with user",
    )


# What means nothing here, and what must not be ignored


@pytest.mark.parametrize(
    "line",
    [
        "pkt_buf = 4096",
        "so_reuseport = 1",
        "server_reset_query = DISCARD ALL",
        "server_reset_query_always = 1",
        "server_check_query = select 1",
        "ignore_startup_parameters = extra_float_digits,options",
        "track_extra_parameters = IntervalStyle",
        "max_prepared_statements = 0",
        "logfile = /var/log/x",
        "pidfile = /run/x",
        "syslog = 1",
        "syslog_facility = daemon",
        "user = postgres",
        "listen_backlog = 128",
        "dns_max_ttl = 15",
        "tcp_defer_accept = 0",
        "tcp_socket_buffer = 0",
        "verbose = 1",
        "peer_id = 0",
        "suspend_timeout = 10",
        "sbuf_loopcnt = 5",
        "query_wait_notify = 5",
        "application_name_add_host = 1",
        "cancel_wait_timeout = 10",
        "server_round_robin = 1",
        "server_lifetime = 0",
    ],
)
def test_what_is_noted(ini: Ini, line: str) -> None:
    path = ini(with_app(f"auth_type = md5\nauth_user = x\n{line}"))
    [note] = load(path).notes
    assert note.startswith(f"{path}:4: {line.split(' ', maxsplit=1)[0]}: ")


def test_notes_of_a_database(ini: Ini) -> None:
    path = ini(f"[databases]\napp = application_name=x\n[pgbouncer]\n{TRUST}")
    about_trust, about_app = load(path).notes
    assert about_trust == f"{path}:4: auth_type: users need not be in auth_file: anybody is let in"
    assert about_app.startswith(f"{path}:2: databases.app.application_name: not needed")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("auth_hba_file = hba.conf", "auth_hba_file: a file of rules is not supported"),
        ("auth_ident_file = map", "auth_ident_file: a map of users is not supported"),
        ("auth_type = hba", 'auth_type: "hba" is not supported: a file of rules'),
        ("auth_type = PAM", 'auth_type: "PAM" is not supported: use scram-sha-256'),
        ("auth_type = ldap", 'auth_type: "ldap" is not supported: use scram-sha-256'),
        ("auth_type = any", 'auth_type: "any" is not supported: "trust" asks for no proof'),
        ("auth_type = plain", 'auth_type: "plain" is not supported: scram-sha-256 takes'),
        ("auth_type = ident", 'auth_type: must be "trust" or "md5"'),
        ("auth_ldap_options = x", "auth_ldap_options: LDAP is not supported"),
        ("disable_pqexec = 1", "disable_pqexec: simple queries cannot be forbidden"),
        ("pool_mode = statement", 'pool_mode: "statement" is not supported: transaction'),
        ("replication = 1", "replication: replication is not passed on"),
        ("[peers]\n1 = host=x", "peers.1: peers are not supported"),
        ("[databases]\nb = replication=1", "databases.b.replication: replication is not"),
        ("[databases]\nb = target_session_attrs=primary", "databases.b.target_session_attrs: "),
        ("[users]\nann = pool_mode=statement", 'users.ann.pool_mode: "statement" is not'),
    ],
)
def test_what_must_not_be_ignored(wrong: Wrong, line: str, problem: str) -> None:
    number = 2 + line.count("\n")
    assert wrong(f"[pgbouncer]\n{line}\n{APP}").startswith(f"{number}: {problem}")


@pytest.mark.parametrize("line", ["disable_pqexec = 0", "auth_hba_file ="])
def test_what_is_switched_off_is_no_error(ini: Ini, line: str) -> None:
    assert len(load(ini(with_app(TRUST + line))).notes) == 1  # that of trust


def test_an_attribute_that_every_session_has(ini: Ini) -> None:
    text = f"[pgbouncer]\n{TRUST}[databases]\napp = target_session_attrs=any\n"
    assert "app" in load(ini(text)).databases


def test_the_config_of_an_ini_is_like_any_other(ini: Ini) -> None:
    path = ini(with_app(TRUST + "default_pool_size = 7"))
    config = load(path)
    assert isinstance(config, Config)
    assert config.needs_restart(load(path)) == []
    assert config.changed("default_pool_size", "8").default_pool_size == 8

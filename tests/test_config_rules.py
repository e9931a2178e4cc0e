"""What is right by itself and cannot be together."""

import pytest

from tests.configurations import ANY, MD5, SCRAM, pool, proxy, read, wrong

TLS = 'client_tls_key_file = "k"\nclient_tls_cert_file = "c"\n'
CA = TLS + 'client_tls_ca_file = "a"\n'


# Where it listens


@pytest.mark.parametrize("address", ["0.0.0.0:6432", "[::]:6432", "10.1.2.3:1", "db.example:6432"])
def test_trust_is_refused_where_others_can_connect(address: str) -> None:
    said = wrong(f'[proxy]\nlisten = ["127.0.0.1:1", "{address}"]\n{ANY}')
    assert said.startswith(f"2: proxy.listen: {address} is open to others")


@pytest.mark.parametrize("address", ["127.0.0.2:1", "localhost:1", "[::1]:1", "unix:/x"])
def test_trust_is_right_where_only_we_are(address: str) -> None:
    assert proxy(f'listen = ["{address}"]').auth_type == "trust"


def test_others_can_connect_where_they_must_prove_who_they_are() -> None:
    lines = 'listen = ["0.0.0.0:6432"]\nauth_type = "md5"\nauth_user = "asker"'
    assert proxy(lines).auth_type == "md5"


def test_peer_is_for_unix_sockets() -> None:
    said = wrong(f'[proxy]\nlisten = ["unix:/x", "[::1]:1"]\nauth_type = "peer"\n{ANY}')
    assert said.startswith('2: proxy.listen: [::1]:1 is no unix socket, and auth_type "peer"')
    assert proxy('listen = ["unix:/x"]\nauth_type = "peer"').auth_type == "peer"


def test_metrics_where_clients_connect() -> None:
    said = wrong(f'[metrics]\nlisten = "127.0.0.1:6432"\n{ANY}')
    assert said == "2: metrics.listen: 127.0.0.1:6432 is where clients connect"
    free = read(f'[proxy]\nlisten = ["127.0.0.1:0"]\n[metrics]\nlisten = "127.0.0.1:0"\n{ANY}')
    assert len(free.metrics) == 1


def test_more_than_one_worker() -> None:
    assert wrong(f"[proxy]\nworkers = 2\n{ANY}") == (
        "2: proxy.workers: more than 1 is not supported yet"
    )


def test_counters_that_are_logged_all_the_time() -> None:
    said = wrong(f"[proxy]\nstats_period = 0\n{ANY}")
    assert said == "2: proxy.stats_period: must not be 0; log_stats = false logs none"


# TLS


@pytest.mark.parametrize(
    ("mode", "files", "missing"),
    [
        ("allow", "", "key_file"),
        ("prefer", 'client_tls_key_file = "k"', "cert_file"),
        ("require", 'client_tls_cert_file = "c"', "key_file"),
        ("verify-ca", TLS, "ca_file"),
        ("verify-full", TLS, "ca_file"),
    ],
)
def test_tls_with_clients_needs_files(mode: str, files: str, missing: str) -> None:
    said = wrong(f'[proxy]\nclient_tls_sslmode = "{mode}"\n{files}\n{ANY}')
    assert said == f'2: proxy.client_tls_sslmode: "{mode}" needs client_tls_{missing}'


@pytest.mark.parametrize(("mode", "files"), [("require", TLS), ("verify-full", CA)])
def test_tls_with_clients_that_has_its_files(mode: str, files: str) -> None:
    assert proxy(f'client_tls_sslmode = "{mode}"\n{files}').client_tls.sslmode == mode


def test_tls_files_without_tls_are_nobodys_business() -> None:
    assert proxy(CA).client_tls.sslmode == "disable"


@pytest.mark.parametrize(("there", "missing"), [("key", "cert"), ("cert", "key")])
def test_half_a_certificate_for_servers(there: str, missing: str) -> None:
    said = wrong(f'[proxy]\nserver_tls_{there}_file = "x"\n{ANY}')
    expected = f"server_tls_{there}_file: is nothing without server_tls_{missing}_file"
    assert said == f"2: proxy.{expected}"


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
def test_cert_needs_certificates(mode: str) -> None:
    said = wrong(f'[proxy]\nauth_type = "cert"\nclient_tls_sslmode = "{mode}"\n{CA}{ANY}')
    assert said.startswith('2: proxy.auth_type: "cert" needs client_tls_sslmode "verify-full"')


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_cert_with_certificates(mode: str) -> None:
    assert proxy(f'auth_type = "cert"\nclient_tls_sslmode = "{mode}"\n{CA}').auth_type == "cert"


# Passwords


@pytest.mark.parametrize(
    ("method", "users", "nobody"),
    [
        ("md5", "", True),
        ("scram-sha-256", "", True),
        ("md5", "[users.ann]\npool_size = 1\n", True),
        ("scram-sha-256", f'[users.ann]\npassword = "{MD5}"\n', True),
        ("scram-sha-256", f'[users.ann]\npassword = "{SCRAM}"\n', False),
        ("scram-sha-256", '[users.ann]\npassword = "plain"\n', False),
        ("md5", f'[users.ann]\npassword = "{MD5}"\n', False),
        ("md5", f'[users.ann]\npassword = "{SCRAM}"\n', False),
        ("trust", "", False),
    ],
)
def test_nobody_could_log_in(method: str, users: str, nobody: bool) -> None:
    text = f'[proxy]\nauth_type = "{method}"\n{users}{ANY}'
    if nobody:
        assert wrong(text).startswith("2: proxy.auth_type: nobody could log in: ")
    else:
        assert read(text).auth_type == method


@pytest.mark.parametrize(
    "asker", ["[databases.app]\nauth_user = 'x'\n", "[proxy]\nauth_user = 'x'\n"]
)
def test_users_that_the_server_knows_could_log_in(asker: str) -> None:
    text = f"{asker}{ANY}"
    with_proxy = text if "[proxy]" in text else f"[proxy]\n{text}"
    assert read(with_proxy.replace("[proxy]\n", "[proxy]\nauth_type = 'md5'\n")).auth_type == "md5"


@pytest.mark.parametrize("table", ["proxy", "databases.app"])
def test_a_query_that_nobody_asks(table: str) -> None:
    said = wrong(f'[{table}]\nauth_query = "SELECT $1, $1"\n{ANY}')
    assert said == f"2: {table}.auth_query: needs auth_user, who asks it"


def test_a_query_that_somebody_asks() -> None:
    query = 'auth_query = "SELECT $1, $1"\n'
    everywhere = read(f"[proxy]\nauth_user = 'x'\n[databases.app]\n{query}{ANY}")
    assert everywhere.databases["app"].auth_query == "SELECT $1, $1"
    somewhere = read(f"[proxy]\n{query}[databases.app]\nauth_user = 'x'\n{ANY}")
    assert somewhere.auth_query == "SELECT $1, $1"


@pytest.mark.parametrize("table", ["proxy", "databases.app"])
def test_a_database_to_ask_in_that_does_not_exist(table: str) -> None:
    text = f'[{table}]\nauth_dbname = "auth"\n[databases.other]\n'
    assert wrong(text) == f"2: {table}.auth_dbname: no such database is configured"
    assert read(text + ANY).databases.keys() >= {"other", "*"}


def test_a_databases_password_is_its_users() -> None:
    text = f'[databases.app]\npassword = "{MD5}"\n'
    assert wrong(text) == "2: databases.app.password: is nobody's: name its user, with user"
    found = pool(read(f'{text}user = "web"\n'), "app", "ann")
    assert (found.server_user, found.password is None) == ("web", False)


# Server connections before there are clients

FORCED = '[databases.app]\nuser = "web"\n'


def with_pool(method: str, database: str, rest: str = "", everywhere: int = 0) -> str:
    head = f'[proxy]\nauth_type = "{method}"\nauth_user = "x"\nmin_pool_size = {everywhere}\n'
    return head + FORCED + database + rest


VERIFIER = f'[users.web]\npassword = "{SCRAM}"\n'
OWN = "min_pool_size = 1\n"


@pytest.mark.parametrize("method", ["md5", "scram-sha-256"])
@pytest.mark.parametrize("rest", [VERIFIER, f'password = "{SCRAM}"\n'])
def test_a_verifier_fills_no_pool(method: str, rest: str) -> None:
    said = wrong(with_pool(method, OWN, rest))
    assert said.startswith(
        "7: databases.app.min_pool_size: of databases.app: all that is known of its user is a"
        " SCRAM verifier, which logs in to no server before a client has"
    )
    said = wrong(with_pool(method, "", rest, everywhere=1))
    assert said.startswith("4: proxy.min_pool_size: of databases.app: all that is known")


@pytest.mark.parametrize(
    "text",
    [
        with_pool("md5", OWN, f'[users.web]\npassword = "{MD5}"\n'),
        with_pool("md5", OWN, '[users.web]\npassword = "plain"\n'),
        with_pool("md5", OWN, f'password = "{MD5}"\n{VERIFIER}'),
        # nothing is known: the server may ask for nothing
        with_pool("md5", OWN),
        with_pool("trust", OWN, VERIFIER),
        with_pool("md5", "min_pool_size = 0\n", VERIFIER, everywhere=1),
        # its pools are those of clients, who bring their keys
        with_pool("md5", OWN, VERIFIER).replace('user = "web"\n', "", 1),
    ],
)
def test_what_fills_a_pool(text: str) -> None:
    assert "app" in read(text).databases


# Databases and timeouts


@pytest.mark.parametrize("name", ["txproxy", "pgbouncer"])
def test_the_consoles_names_are_the_consoles(name: str) -> None:
    said = wrong(f"[databases.{name}]\n")
    assert said == f"1: databases.{name}: is the console's name: call it otherwise"


def test_a_database_that_leads_to_the_proxy_itself() -> None:
    said = wrong("[databases.app]\nport = 6432\n")
    assert said == "2: databases.app.port: leads to the proxy itself, which listens there"
    said = wrong('[proxy]\nlisten = ["unix:/x"]\n[databases.app]\nhost = ["a", "/x"]\nport = 6432')
    assert said.startswith("5: databases.app.port: leads to the proxy itself")
    elsewhere = read('[databases.app]\nhost = "127.0.0.2"\nport = 6432\n')
    assert pool(elsewhere).port == 6432


@pytest.mark.parametrize("table", ["proxy", "databases.app", "users.ann"])
@pytest.mark.parametrize("timeout", ['"2min"', "0"])
def test_a_longest_timeout_that_is_less_than_the_timeout(table: str, timeout: str) -> None:
    lines = f'idle_transaction_timeout = {timeout}\nidle_transaction_timeout_max = "1min"\n'
    said = wrong(f"[{table}]\n{lines}{ANY}")
    assert said.startswith(f"3: {table}.idle_transaction_timeout_max: is less than")


def test_a_longest_timeout_that_is_less_than_the_default() -> None:
    said = wrong(f'[proxy]\nidle_transaction_timeout_max = "10s"\n{ANY}')
    assert said.startswith("2: proxy.idle_transaction_timeout_max: is less than")


def test_no_database() -> None:
    assert wrong("[proxy]\n").startswith("databases: no database is configured")
    assert wrong("[proxy]\n[databases]\n").startswith("2: databases: no database is configured")

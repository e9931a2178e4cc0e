"""Whatever stands in a file, a ConfigError comes of it or a Config; and no password is seen in
either, nor in what is said of them.
"""

import contextlib
import io
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.configurations import ANY
from txproxy.cli.check import check
from txproxy.config import SETTINGS, load
from txproxy.errors import ConfigError

SAME_DIRECTORY: Final = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
NAMES: Final = st.sampled_from([setting.key for setting in SETTINGS])
WHATEVER: Final = st.text(max_size=5)


def outcome(path: Path) -> str:
    """Whatever can be seen of a file: the error, or the Config and what is said of it."""
    try:
        config = load(str(path))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            check(config)
    except ConfigError as error:
        return f"{error} {error!r} {error.args} {vars(error)}"
    return f"{config!r} {config} {config.notes} {printed.getvalue()}"


# proxy.toml

TABLES = ["proxy", "databases.app", 'databases."*"', "users.ann", "metrics", "sqlite", "[users]"]
VALUES = ["'md5'", "1", "-1.5e9", "true", "'x'", "[]", "[1, ['a']]", "{a = 1}", "1979-05-27", "nan"]
MARKS = ["'127.0.0.1:1'", "\n", "=", '"', "'''", "\0", "é", "{}", "'/'"]


@settings(max_examples=300, deadline=None, suppress_health_check=SAME_DIRECTORY)
@given(
    st.lists(
        st.builds("[{}]\n".format, st.sampled_from(TABLES))
        | st.builds("{} = {}\n".format, NAMES, st.sampled_from([*VALUES, *MARKS]))
        | WHATEVER,
        max_size=12,
    )
)
def test_a_toml_of_whatever(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "proxy.toml"
    path.write_bytes("".join(lines).encode(errors="surrogatepass"))
    assert outcome(path)


# pgbouncer.ini

SECTIONS = ["[databases]", "[users]", "[pgbouncer]", "[peers]", "[", "%include /", ";", "="]
KEYS = ["app", "*", '"a b"', "auth_type", "listen_addr", "listen_port", "auth_file", "pkt_buf"]
TEXTS = ["", "trust", "1", "-1", "/", "host=x", "user=x pool_size=1", "a='", "1e5", "hba", "*"]


@settings(max_examples=300, deadline=None, suppress_health_check=SAME_DIRECTORY)
@given(
    st.lists(
        st.sampled_from(SECTIONS)
        | st.builds("{} = {}".format, st.sampled_from(KEYS) | NAMES, st.sampled_from(TEXTS))
        | st.builds("{} = {}".format, st.sampled_from(KEYS) | NAMES, WHATEVER)
        | WHATEVER,
        max_size=12,
    )
)
def test_an_ini_of_whatever(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "pgbouncer.ini"
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    assert outcome(path)


# Passwords

NEEDLE = "Xq7-needle-Zw9"
MODES = st.sampled_from([0o600, 0o644])
# as people write them, not all of which is right
PASSWORDS = st.sampled_from(
    ["{}", "'{}'", "'{}", "'{}'x", "x {}", "'x' {}", "x {}=y", "x y={}", "={}", "{}\\", "x\n{}"]
).map(lambda form: form.format(NEEDLE))


@settings(max_examples=200, deadline=None, suppress_health_check=SAME_DIRECTORY)
@given(
    PASSWORDS,
    MODES,
    st.sampled_from(["users.ann", "databases.app", "proxy", "metrics"]),
    st.sampled_from(['"{}"', "'{}'", "'''{}'''", "{}", "['{}']", "{{a = '{}'}}"]),
    st.sampled_from(["", "user = 'web'\n", "password_env = 'HOME'\n", "zzz = 1\n", "= 1\n"]),
)
def test_a_toml_shows_no_password(
    tmp_path: Path, password: str, mode: int, table: str, quotes: str, line: str
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(f"[{table}]\npassword = {quotes.format(password)}\n{line}{ANY}")
    path.chmod(mode)
    assert NEEDLE not in outcome(path)


@settings(max_examples=200, deadline=None, suppress_health_check=SAME_DIRECTORY)
@given(
    PASSWORDS,
    MODES,
    st.sampled_from(['"ann" "{}"', '"ann" {}', 'ann "{}"', '"ann" "x{}']),
    st.sampled_from(["", " user=x", " port=y", " z=1"]),
)
def test_an_ini_shows_no_password(
    tmp_path: Path, password: str, mode: int, entry: str, rest: str
) -> None:
    path, users = tmp_path / "pgbouncer.ini", tmp_path / "userlist.txt"
    users.write_text(entry.format(password))
    for database in ("host=x", f"host=x password={password}{rest}"):
        path.write_text(f"[databases]\napp = {database}\n[pgbouncer]\nauth_file = {users}\n")
        for file in (path, users):
            file.chmod(mode)
        assert NEEDLE not in outcome(path)

"""Where passwords may be kept, and that nobody is shown one."""

import copy
import pickle
from pathlib import Path

import pytest

from tests.configurations import ANY, MD5, SCRAM, load_error, pool, read, wrong
from txproxy.config import Secret, load
from txproxy.wire.scram import Verifier

PLAIN = "correct horse"


# Secrets


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (MD5, "md5"),
        (SCRAM, "scram-sha-256"),
        (PLAIN, "plain"),
        (MD5.upper(), "plain"),
        (MD5[:-1], "plain"),
        (f"{MD5}0", "plain"),
        ("SCRAM-SHA-256$", "plain"),
        (SCRAM.replace("4096", "many"), "plain"),
        (SCRAM[:-1], "plain"),
        (SCRAM.replace("$4096:", "$4096:="), "plain"),
        (f"{SCRAM}\n", "plain"),
    ],
)
def test_kinds_of_secrets(text: str, kind: str) -> None:
    assert Secret(text).kind == kind


@pytest.mark.parametrize("text", [PLAIN, MD5, SCRAM])
def test_a_secret_is_not_shown(text: str) -> None:
    secret = Secret(text)
    assert f"{secret} {secret!r} {[secret]}" == "******** ******** [********]"
    assert secret == Secret(text) != Secret(f"{text}x")
    assert copy.deepcopy(secret) == pickle.loads(pickle.dumps(secret)) == secret


# Where they stand


@pytest.mark.parametrize(("table", "user"), [("users.ann", "ann"), ("databases.app", "web")])
@pytest.mark.parametrize("text", [PLAIN, MD5, SCRAM, "pass'wörd"])
def test_a_password_in_the_file(table: str, user: str, text: str) -> None:
    line = 'user = "web"\n' if table.startswith("databases") else ""
    config = read(f'[{table}]\n{line}password = "{text}"\n{ANY}')
    assert pool(config, "app", user).password == Secret(text)
    assert pool(config, "other", "bob").password is None


def test_a_databases_password_beats_its_users() -> None:
    text = f'[databases.app]\nuser = "web"\npassword = "one"\n[users.web]\npassword = "two"\n{ANY}'
    assert pool(read(text), "app", "ann").password == Secret("one")
    assert pool(read(text), "other", "web").password == Secret("two")


@pytest.mark.parametrize("written", ["12", "true", "[]", '""', '"a\\nb"', '"a\\u0000b"'])
def test_what_is_no_password(written: str) -> None:
    assert wrong(f"[users.ann]\npassword = {written}\n{ANY}").startswith(
        "2: users.ann.password: must be "
    )


def test_a_verifier_that_was_cut_off_is_no_plain_password() -> None:
    said = wrong(f'[users.ann]\npassword = "{SCRAM[:-1]}"\n{ANY}')
    assert said.startswith("2: users.ann.password: begins as a SCRAM verifier and is none")


def test_a_verifier_is_what_logins_take_for_one() -> None:
    for salt in (b"1", b"12", b"123", b"0123456789abcdef"):
        text = str(Verifier.of(PLAIN, salt))
        assert Secret(text).kind == "scram-sha-256"
        assert Verifier.parse(text) is not None
    assert Verifier.parse(SCRAM[:-1]) is None


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("text", [PLAIN, f" {PLAIN} ", MD5, SCRAM])
def test_a_password_in_a_file_of_its_own(tmp_path: Path, text: str, end: str) -> None:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_bytes(f"{text}{end}".encode())
    config = read(f'[users.ann]\npassword_file = "{path}"\n{ANY}')
    assert config.users["ann"].password == Secret(text)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "must be a string, and not an empty one"),
        (b"\n", "must be a string, and not an empty one"),
        (b"two\nlines\n", "must be one line of UTF-8"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_files_without_a_password(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_bytes(content)
    said = wrong(f'[users.ann]\npassword_file = "{path}"\n{ANY}')
    assert said.startswith(f"2: users.ann.password_file: {path}")
    assert said.endswith(problem)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    said = wrong(f'[users.ann]\npassword_file = "{tmp_path}/none"\n{ANY}')
    assert said == f"2: users.ann.password_file: {tmp_path}/none: No such file or directory"


def test_a_password_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'[users.ann]\npassword_env = "ANNS_PASSWORD"\n{ANY}'
    monkeypatch.delenv("ANNS_PASSWORD", raising=False)
    assert wrong(text) == (
        "2: users.ann.password_env: there is no environment variable ANNS_PASSWORD"
    )
    monkeypatch.setenv("ANNS_PASSWORD", "")
    assert "the environment variable ANNS_PASSWORD must be" in wrong(text)
    monkeypatch.setenv("ANNS_PASSWORD", "a\udcffb")  # a byte that is not UTF-8
    assert wrong(text).endswith("must be one line of UTF-8")
    monkeypatch.setenv("ANNS_PASSWORD", PLAIN)
    assert read(text).users["ann"].password == Secret(PLAIN)


@pytest.mark.parametrize("table", ["users.ann", "databases.app"])
def test_a_password_in_two_places(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNS_PASSWORD", PLAIN)
    said = wrong(f'[{table}]\npassword_env = "ANNS_PASSWORD"\npassword = "x"\n{ANY}')
    assert said == f"2: {table}.password_env: password says it already; only one of them"


# Who else can read them


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o660, 0o602, 0o601])
def test_a_plain_password_that_others_can_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(f'[users.ann]\npassword = "{PLAIN}"\n{ANY}')
    path.chmod(mode)
    error = load_error(path)
    assert (error.line, error.key) == (2, "users.ann.password")
    assert error.problem.startswith(f"a plain password is in {path}, which others can read: chmod")

    password = tmp_path / "password"
    password.write_text(PLAIN)
    password.chmod(mode)
    said = wrong(f'[users.ann]\npassword_file = "{password}"\n{ANY}')
    assert said.startswith(f"2: users.ann.password_file: a plain password is in {password}, which")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_plain_password_that_only_we_can_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(f'[users.ann]\npassword = "{PLAIN}"\n{ANY}')
    path.chmod(mode)
    assert load(str(path)).users["ann"].password == Secret(PLAIN)


@pytest.mark.parametrize("text", [MD5, SCRAM])
def test_what_is_not_plain_may_be_read(tmp_path: Path, text: str) -> None:
    password = tmp_path / "password"
    password.write_text(text)
    password.chmod(0o644)
    path = tmp_path / "proxy.toml"
    path.write_text(
        f'[users.ann]\npassword = "{text}"\n[users.bob]\npassword_file = "{password}"\n{ANY}'
    )
    path.chmod(0o644)
    assert {user.password for user in load(str(path)).users.values()} == {Secret(text)}

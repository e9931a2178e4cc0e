import pytest

from tests.core.scenario import scene
from txproxy.core.cancel import CancelKeys


def test_a_key_finds_its_session_and_no_other() -> None:
    world, client, _ = scene()
    other = world.client()
    keys = CancelKeys()
    pid, secret = keys.issue(client.session)
    other_pid, other_secret = keys.issue(other.session)
    assert keys.find(pid, secret) is client.session
    assert keys.find(other_pid, other_secret) is other.session
    assert keys.find(pid, other_secret) is None
    assert keys.find(pid, b"") is None
    assert keys.find(0, secret) is None


def test_a_process_id_is_positive_and_each_is_another() -> None:
    _, client, _ = scene()
    keys = CancelKeys()
    pids = [keys.issue(client.session)[0] for _ in range(1000)]
    assert len(set(pids)) == 1000
    assert all(0 < pid < 2**31 for pid in pids)


def test_a_session_that_has_ended_is_not_found() -> None:
    _, client, _ = scene()
    keys = CancelKeys()
    pid, secret = keys.issue(client.session)
    keys.forget(pid)
    keys.forget(pid)
    assert keys.find(pid, secret) is None


def test_a_session_that_has_ended_leaves_the_others() -> None:
    world, client, _ = scene()
    other = world.client()
    keys = CancelKeys()
    pid, secret = keys.issue(client.session)
    ended, _ = keys.issue(other.session)
    keys.forget(ended)
    assert keys.find(pid, secret) is client.session


@pytest.mark.parametrize(("is_long", "length"), [(False, 4), (True, 32)])
def test_a_secret_is_as_long_as_the_protocol_has_it_and_does_not_repeat(
    is_long: bool, length: int
) -> None:
    _, client, _ = scene()
    keys = CancelKeys()
    secrets = [keys.issue(client.session, is_long)[1] for _ in range(100)]
    assert {len(secret) for secret in secrets} == {length}
    assert len(set(secrets)) > 90


def test_a_part_of_a_long_secret_is_a_wrong_key() -> None:
    _, client, _ = scene()
    keys = CancelKeys()
    pid, secret = keys.issue(client.session, is_long=True)
    assert keys.find(pid, secret) is client.session
    for wrong in (b"", secret[:4], secret[:-1], secret + b"\0", bytes(32)):
        assert keys.find(pid, wrong) is None

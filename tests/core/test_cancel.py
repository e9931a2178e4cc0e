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


def test_a_secret_has_four_bytes_and_does_not_repeat() -> None:
    _, client, _ = scene()
    keys = CancelKeys()
    secrets = [keys.issue(client.session)[1] for _ in range(100)]
    assert {len(secret) for secret in secrets} == {4}
    assert len(set(secrets)) > 90

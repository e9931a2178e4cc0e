"""Sockets are told what the configuration says of TCP."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from txproxy.backends.reach import keep_alive
from txproxy.config import TcpSettings


def told(settings: TcpSettings, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A socket that was told so."""
    sock = socket.socket(family)
    transport = SimpleNamespace(get_extra_info=lambda _: sock)
    keep_alive(cast(Any, transport), settings)
    return sock


def option(sock: socket.socket, name: str) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))


SYSTEMS = TcpSettings(keepalive=True, keepidle=0, keepintvl=0, keepcnt=0, user_timeout=0.0)


def test_keepalive_in_the_systems_own_way() -> None:
    with told(SYSTEMS) as sock, socket.socket() as untouched:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
            if hasattr(socket, name):
                assert option(sock, name) == option(untouched, name)


def test_no_keepalive() -> None:
    settings = TcpSettings(keepalive=False, keepidle=9, keepintvl=9, keepcnt=9, user_timeout=0.0)
    with told(settings) as sock, socket.socket() as untouched:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        if hasattr(socket, "TCP_KEEPCNT"):
            assert option(sock, "TCP_KEEPCNT") == option(untouched, "TCP_KEEPCNT")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has all of them")
def test_each_option() -> None:
    settings = TcpSettings(keepalive=True, keepidle=11, keepintvl=12, keepcnt=13, user_timeout=1.5)
    with told(settings) as sock:
        assert option(sock, "TCP_KEEPIDLE") == 11
        assert option(sock, "TCP_KEEPINTVL") == 12
        assert option(sock, "TCP_KEEPCNT") == 13
        assert option(sock, "TCP_USER_TIMEOUT") == 1500


def test_a_unix_socket_has_none_of_them() -> None:
    with told(SYSTEMS, socket.AF_UNIX) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


async def test_a_connection_that_is_gone_is_no_error() -> None:
    transport = SimpleNamespace(get_extra_info=lambda _: None)
    keep_alive(cast(asyncio.BaseTransport, transport), SYSTEMS)
    closed = socket.socket()
    closed.close()
    keep_alive(cast(Any, SimpleNamespace(get_extra_info=lambda _: closed)), SYSTEMS)

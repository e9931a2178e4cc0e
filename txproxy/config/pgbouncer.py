"""What PgBouncer's settings mean here, where that is not what their names say."""

from typing import Any, Final

DEFAULTS: Final[dict[str, Any]] = {
    "auth_type": "md5",
    "idle_transaction_timeout": 0.0,
    "max_client_conn": 100,
    "pool_mode": "session",
    "unix_socket_mode": 0o777,
}
"""PgBouncer's, where they are others than ours and its users count on them."""

UNIX_SOCKET_DIR: Final = "/tmp"  # noqa: S108  PgBouncer's default

_LOG: Final = "the log goes to stderr, for systemd or whoever started the proxy"
_SYSTEM: Final = "left to the system"
_OURS: Final = "not needed: buffers look after themselves"
_DNS: Final = "names are looked up for each new server connection"
_RESET: Final = "not needed: a server connection is cleaned of what its client left, and only then"
_TLS: Final = "left to OpenSSL"

_NOTED_HERE: Final[dict[str, str]] = {
    "application_name_add_host": "servers are told the client's own application_name",
    "autodb_idle_timeout": "not needed: a pool without connections costs nothing",
    "cancel_wait_timeout": "not needed: cancel requests do not wait for a server connection",
    "client_tls13_ciphers": _TLS,
    "client_tls_dheparams": _TLS,
    "client_tls_ecdhcurve": _TLS,
    "conffile": "a reload reads the file that the proxy was started with",
    "dns_max_ttl": _DNS,
    "dns_nxdomain_ttl": _DNS,
    "dns_zone_check_period": _DNS,
    "ignore_startup_parameters": "not needed: what the server understands is passed on to it",
    "job_name": _LOG,
    "listen_backlog": _SYSTEM,
    "log_pooler_errors": "refused clients are logged",
    "logfile": _LOG,
    "login_notify_message": "clients get no message of ours",
    "max_packet_size": "not needed: messages are passed on as they come, of whatever size",
    "max_prepared_statements": "not needed: prepared statements are followed, and bounded by bytes"
    " for each server connection",
    "peer_id": "has no meaning without peers",
    "pidfile": "not written: the proxy does not leave its terminal",
    "pkt_buf": _OURS,
    "pool_idle_timeout": "not needed: a pool without connections costs nothing",
    "query_wait_notify": "clients get no message of ours",
    "resolv_conf": _SYSTEM,
    "sbuf_loopcnt": _OURS,
    "scram_iterations": "not needed: those of the server's verifiers hold",
    "server_check_query": "not needed: unused server connections are asked with an empty query",
    "server_fast_close": "a client in session mode keeps its server connection until it leaves",
    "server_reset_query": _RESET,
    "server_reset_query_always": _RESET,
    "server_round_robin": "the server connection that was used last is used first",
    "server_tls13_ciphers": _TLS,
    "service_name": _LOG,
    "so_reuseport": "one process listens on an address",
    "suspend_timeout": "SUSPEND waits for nothing",
    "syslog": _LOG,
    "syslog_facility": _LOG,
    "syslog_ident": _LOG,
    "tcp_defer_accept": _SYSTEM,
    "tcp_socket_buffer": _SYSTEM,
    "track_extra_parameters": "not needed: every setting of a client is looked after",
    "user": "the proxy stays the user that started it: start it as this one",
    "verbose": "log_level says how much is logged",
}
NOTED: Final[dict[str, dict[str, str]]] = {
    "pgbouncer": _NOTED_HERE,
    "databases": {"application_name": "not needed: servers are told the client's own"},
    "users": {},
}
"""Settings that do nothing here, by section, and why."""

_RULES: Final = (
    "is not supported: choose one auth_type for everybody, and let listen_addr, admin_users and"
    " [databases] say the rest"
)

_INSTEAD: Final = "is not supported: use scram-sha-256 with auth_file or auth_user"

REFUSED: Final[dict[str, dict[str, str]]] = {
    "pgbouncer": {
        "auth_hba_file": f"a file of rules {_RULES}",
        "auth_ident_file": "a map of users is not supported: a client logs in under its own name",
        "auth_ldap_options": f"LDAP {_INSTEAD}",
        "auth_ldap_parameter": f"LDAP {_INSTEAD}",
        "disable_pqexec": "simple queries cannot be forbidden: remove it if that will do",
        "replication": "replication is not passed on: connect to the server itself",
    },
    "databases": {
        "replication": "replication is not passed on: connect to the server itself",
        "target_session_attrs": "servers are not asked what they are: name the host that is it",
    },
    "users": {},
}
"""Settings without which the proxy would let in or do what nobody expects, by section."""

SWITCHED_OFF: Final = ("", "0", "any")
"""Values with which those mean nothing in PgBouncer either."""

REFUSED_VALUES: Final[dict[str, dict[str, str]]] = {
    "auth_type": {
        "any": 'is not supported: "trust" asks for no proof either, and users of databases stay',
        "hba": f"is not supported: a file of rules {_RULES}",
        "ldap": _INSTEAD,
        "pam": _INSTEAD,
        "plain": "is not supported: scram-sha-256 takes the same auth_file and shows no password",
    },
    "pool_mode": {
        "statement": "is not supported: transaction serves the same clients",
    },
}

PEERS: Final = (
    "peers are not supported: a cancel request that reaches another proxy would be lost; clients"
    " of one database belong to one proxy"
)

NOTED_VALUES: Final[dict[tuple[str, str], str]] = {
    ("auth_type", "trust"): "users need not be in auth_file: anybody is let in",
    ("server_check_delay", "0"): "0 is never, not always",
    ("server_lifetime", "0"): "0 is for ever, not a single use",
}
"""Values that mean something else here."""

CIPHERS: Final = {
    "secure": "default",
    "fast": "default",
    "normal": "default",
    "all": "ALL",
}
PROTOCOLS: Final = {"legacy": "all"}

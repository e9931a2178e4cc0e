from txproxy.wire import codes

CLIENT = "BCDEFHPQSXfcd"


def test_each_code_is_the_letter_of_the_specification() -> None:
    letters = {
        "BIND": "B", "CLOSE": "C", "DESCRIBE": "D", "EXECUTE": "E", "FUNCTION_CALL": "F",
        "FLUSH": "H", "PARSE": "P", "QUERY": "Q", "SYNC": "S", "TERMINATE": "X", "COPY_FAIL": "f",
        "COPY_DONE": "c", "COPY_DATA": "d", "PARSE_COMPLETE": "1", "BIND_COMPLETE": "2",
        "CLOSE_COMPLETE": "3", "NOTIFICATION": "A", "COMMAND_COMPLETE": "C", "DATA_ROW": "D",
        "ERROR_RESPONSE": "E", "COPY_IN_RESPONSE": "G", "COPY_OUT_RESPONSE": "H",
        "EMPTY_QUERY": "I", "BACKEND_KEY_DATA": "K", "NOTICE_RESPONSE": "N", "AUTHENTICATION": "R",
        "PARAMETER_STATUS": "S", "ROW_DESCRIPTION": "T", "FUNCTION_RESULT": "V",
        "COPY_BOTH_RESPONSE": "W", "READY_FOR_QUERY": "Z", "NO_DATA": "n", "PORTAL_SUSPENDED": "s",
        "PARAMETER_DESCRIPTION": "t", "NEGOTIATE_VERSION": "v", "IDLE": "I",
        "IN_TRANSACTION": "T", "IN_FAILED": "E",
    }  # fmt: skip
    assert {name: chr(getattr(codes, name)) for name in letters} == letters


def test_a_client_may_send_its_messages_and_no_others() -> None:
    limits = codes.client_limits()
    assert len(limits) == 256
    assert {chr(kind) for kind in range(256) if limits[kind]} == set(CLIENT)


def test_what_is_never_long_is_bounded() -> None:
    limits = codes.client_limits()
    assert limits[codes.SYNC] == limits[codes.EXECUTE] == 10_000
    assert limits[codes.QUERY] == limits[codes.COPY_DATA] == 0x3FFFFFFF


def test_the_codes_of_first_packets_are_those_of_the_specification() -> None:
    assert tuple((1234 << 16) | minor for minor in (5678, 5679, 5680)) == (
        codes.CANCEL_REQUEST,
        codes.SSL_REQUEST,
        codes.GSS_REQUEST,
    )
    assert codes.PROTOCOL_3_0 == 3 << 16

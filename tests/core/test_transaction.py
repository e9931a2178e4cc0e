from pathlib import Path

import pytest

from txproxy.core import transaction
from txproxy.core.transaction import EVENTS, STATES, TABLE

PAIRS = [(state, event) for state in STATES for event in EVENTS]


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair in TABLE])
def test_a_legal_pair_leads_where_the_table_says(state: str, event: str) -> None:
    following = transaction.after(STATES.index(state), list(EVENTS).index(event))
    assert STATES[following] == TABLE[state, event]


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in TABLE])
def test_an_illegal_pair_raises_and_says_which(state: str, event: str) -> None:
    with pytest.raises(ValueError, match=f"^{event} in {state}$"):
        transaction.after(STATES.index(state), list(EVENTS).index(event))


def test_the_numbers_are_places_in_the_tables() -> None:
    assert [getattr(transaction, name) for name in STATES] == list(range(len(STATES)))
    assert [getattr(transaction, name) for name in EVENTS] == list(range(len(EVENTS)))


def test_from_every_state_there_is_a_way_back_to_none() -> None:
    for state in STATES:
        reached = {state}
        for _ in STATES:
            reached |= {after for (before, _), after in TABLE.items() if before in reached}
        assert "NONE" in reached


def test_the_printed_table_holds_every_cell_and_every_meaning() -> None:
    lines = transaction.render().splitlines()
    head = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    assert head == list(EVENTS)
    rows = {}
    for line in lines[2 : 2 + len(STATES)]:
        name, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        rows[name.strip("*")] = cells
    assert rows == {state: [TABLE.get((state, event), "") for event in EVENTS] for state in STATES}
    assert lines[-len(EVENTS) :] == [f"- **{event}**: {text}." for event, text in EVENTS.items()]


def test_the_documentation_prints_this_table() -> None:
    root = Path(__file__).parents[2]
    if not (root / "txproxy").is_dir():
        pytest.skip("the tests are in a copy without docs/, beside a compiled build")
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    printed = text.split("<!-- transaction table -->", 1)[1]
    printed = printed.split("<!-- end of transaction table -->", 1)[0]
    assert printed.strip("\n") == transaction.render().strip("\n")

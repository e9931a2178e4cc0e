"""Whether the ledger notices what must not be."""

from collections import Counter

import pytest

from tests.sqlite.load import REFUSED, TOLD, UNKNOWN, Group


def check(group: Group, *counts: int, end: int | None = None) -> None:
    rows = Counter({(1, 1, part): count for part, count in enumerate(counts)})
    group.check(rows, end)


def test_what_may_be() -> None:
    check(Group(1, 1, 2, is_whole=True, outcome=TOLD), 1, 1)
    check(Group(1, 1, 2, is_whole=True, outcome=TOLD, at=5), 0, 0, end=4)
    check(Group(1, 1, 2, is_whole=True, outcome=UNKNOWN), 0, 0)
    check(Group(1, 1, 2, is_whole=True, outcome=UNKNOWN), 1, 1)
    check(Group(1, 1, 2, is_whole=False, outcome=UNKNOWN), 1, 0)
    check(Group(1, 1, 2, is_whole=True, outcome=REFUSED), 0, 0)


@pytest.mark.parametrize(
    ("outcome", "is_whole", "counts", "complaint"),
    [
        (TOLD, True, (0, 0), "lost"),
        (TOLD, False, (1, 0), "lost"),
        (TOLD, False, (1, 2), "twice"),
        (UNKNOWN, False, (2, 0), "twice"),
        (UNKNOWN, True, (1, 0), "torn"),
        (REFUSED, True, (1, 1), "refused, but there"),
    ],
)
def test_what_may_not(
    outcome: str, is_whole: bool, counts: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(Group(1, 1, 2, is_whole, outcome, at=5), *counts, end=5)

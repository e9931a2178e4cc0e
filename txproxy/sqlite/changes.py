"""What statements have changed: rowcount, lastrowid and total_changes, from CommandComplete's tags.

INSERT ROWID N    also of REPLACE; the rowid is SQLite's last_insert_rowid
UPDATE N
DELETE N
"""


class Changes:
    """Of one connection: the last rowid that it inserted, and how many rows it changed in all."""

    def __init__(self) -> None:
        self.last_rowid = 0
        self.total = 0

    def __repr__(self) -> str:
        return f"<Changes last_rowid={self.last_rowid} total={self.total}>"

    def count(self, tags: list[bytes]) -> int:
        """The rows that the last statement changed; -1: it is none that changes rows."""
        changes = -1
        for tag in tags:
            words = tag.split(b" ")
            changes = -1
            if words[0] == b"INSERT" and len(words) == 3:
                changes = int(words[2])
                if changes:
                    self.last_rowid = int(words[1])
            elif len(words) == 2 and words[0] in {b"UPDATE", b"DELETE"}:
                changes = int(words[1])
            self.total += max(0, changes)
        return changes

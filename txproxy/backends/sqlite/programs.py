"""Which statements are over in a moment, whatever is in the file: those whose program has no loop.

SQLite makes a program of each statement, which EXPLAIN shows (sqlite.org/opcode.html). Without a
loop, and without an instruction that walks through a table by itself, as Count does, it takes as
long as it is: a row is found by its key, and read or written. So it may run without a thread.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

# What takes no longer with more rows in the file; jumps among them that only go forward.
_QUICK_ONES: Final = """
Add AddImm Affinity And BeginSubrtn BitAnd BitNot BitOr Blob Cast Close CollSeq Column
Compare Concat Copy CursorHint DeferredSeek Delete Divide Eq FinishSeek FkCheck FkCounter
FkIfZero Found Ge Goto Gt Halt HaltIfNull IdxDelete IdxGE IdxGT IdxInsert IdxLE IdxLT
IdxRowid If IfNot IfNoHope IfNullRow Init Insert Int64 IntCopy Integer IsNull IsTrue
IsType Jump Le Lt MakeRecord Move Multiply MustBeInt Ne NewRowid NoConflict Noop Not
NotExists NotFound NotNull Null NullRow Offset Once OpenEphemeral OpenRead OpenWrite Or
Real RealAffinity Remainder ResetCount ResultRow Return Rewind Rowid SCopy SeekEnd SeekGE
SeekGT SeekHit SeekLE SeekLT SeekRowid SoftNull String String8 Subtract Transaction
TypeCheck Variable ZeroOrNull
"""
_QUICK: Final = frozenset(_QUICK_ONES.split())
_LOOPS: Final = frozenset({"Next", "Prev"})


class Instruction(NamedTuple):
    """The first columns of EXPLAIN."""

    addr: int
    opcode: str
    p1: int
    p2: int


def is_short(program: Sequence[Instruction]) -> bool:
    """Whether it is. Two kinds of loops are none: over a temporary table, which is filled by as
    many instructions as it has rows (RETURNING, IN), and over the children of a foreign key that
    is violated just then.
    """
    temporary = {each.p1 for each in program if each.opcode == "OpenEphemeral"}
    guards = [(each.addr, each.p2) for each in program if each.opcode == "FkIfZero"]
    last = len(program) - 1
    for each in program:
        if each.opcode in _LOOPS:
            guarded = any(begin < each.p2 and each.addr < end for begin, end in guards)
            if each.p1 not in temporary and not guarded:
                return False
        elif each.opcode not in _QUICK or _is_back(each, last):
            return False
    return True


def _is_back(each: Instruction, last: int) -> bool:
    # The last one leads from the preparations, which stand at the end, to the beginning.
    return each.opcode == "Goto" and each.p2 <= each.addr < last

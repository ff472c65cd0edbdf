"""What a transaction may be waiting for, and what each answer leads to: the tables.

Layer: sans-I/O.  Spec: RFC 5321 §4.1.4 (order of commands), RFC 2920 §3.1, RFC 3030 §2; events-dane 11.4.

A transaction awaits one reply at a time, in the order of its commands.  How its commands are sent is its *style*: one
at a time, in a group, or in a group with the content glued to it.  What an answer leads to depends on both:

    lock-step   [RSET] MAIL -> RCPT (each) -> DATA -> FINAL           a refusal ends it
    group       [RSET] MAIL -> RCPT (each) -> DATA -> FINAL           replies to what was sent already are awaited
                                                   -> LONE_DOT        354 though nobody was accepted (RFC 2920 §3.1)
    BDAT        the same without DATA: accepted recipients lead from the last RCPT to FINAL
    glued       [RSET] MAIL -> RCPT (each) -> FINAL                   whatever the answers

Entering a stage whose command has not been sent yet sends it; `client` has that part.
"""

from __future__ import annotations

import enum
from typing import Final


class Stage(enum.IntEnum):
    """Which reply comes next."""

    RSET = 0
    MAIL = 1
    RCPT = 2
    #: the reply to DATA
    DATA = 3
    #: the reply to the end of the content
    FINAL = 4
    #: the reply to a dot that ended a message for nobody
    LONE_DOT = 5
    #: no reply is awaited any more
    DONE = 6


class Style(enum.IntEnum):
    """How the commands of a transaction are sent."""

    LOCK_DATA = 0
    LOCK_BDAT = 1
    GROUP_DATA = 2
    GROUP_BDAT = 3
    GLUED = 4

    @property
    def is_lock_step(self) -> bool:
        return self <= Style.LOCK_BDAT

    @property
    def is_chunked(self) -> bool:
        return self is Style.GLUED or self is Style.GROUP_BDAT or self is Style.LOCK_BDAT


class Answer(enum.IntEnum):
    """What a reply means to its stage.

    For RCPT this is the sum of all recipients, read after the last of them.
    """

    #: as hoped
    YES = 0
    #: refused, for now or for good
    NO = 1
    #: 354 to DATA, but nobody was accepted
    EMPTY = 2


_GO_ON: Final = {
    (Stage.RSET, Answer.YES): Stage.MAIL,
    (Stage.RSET, Answer.NO): Stage.MAIL,
    (Stage.MAIL, Answer.YES): Stage.RCPT,
    (Stage.FINAL, Answer.YES): Stage.DONE,
    (Stage.FINAL, Answer.NO): Stage.DONE,
}
_TO_DATA: Final = {
    (Stage.DATA, Answer.YES): Stage.FINAL,
    (Stage.DATA, Answer.NO): Stage.DONE,
    (Stage.DATA, Answer.EMPTY): Stage.LONE_DOT,
    (Stage.LONE_DOT, Answer.YES): Stage.DONE,
    (Stage.LONE_DOT, Answer.NO): Stage.DONE,
}

#: style -> (stage, answer) -> next stage; what is not here cannot happen
TRANSITIONS: Final[dict[Style, dict[tuple[Stage, Answer], Stage]]] = {
    Style.LOCK_DATA: _GO_ON
    | _TO_DATA
    | {
        (Stage.MAIL, Answer.NO): Stage.DONE,
        (Stage.RCPT, Answer.YES): Stage.DATA,
        (Stage.RCPT, Answer.NO): Stage.DONE,
    },
    Style.LOCK_BDAT: _GO_ON
    | {
        (Stage.MAIL, Answer.NO): Stage.DONE,
        (Stage.RCPT, Answer.YES): Stage.FINAL,
        (Stage.RCPT, Answer.NO): Stage.DONE,
    },
    Style.GROUP_DATA: _GO_ON
    | _TO_DATA
    | {
        (Stage.MAIL, Answer.NO): Stage.RCPT,
        (Stage.RCPT, Answer.YES): Stage.DATA,
        (Stage.RCPT, Answer.NO): Stage.DATA,
    },
    Style.GROUP_BDAT: _GO_ON
    | {
        (Stage.MAIL, Answer.NO): Stage.RCPT,
        (Stage.RCPT, Answer.YES): Stage.FINAL,
        (Stage.RCPT, Answer.NO): Stage.DONE,
    },
    Style.GLUED: _GO_ON
    | {
        (Stage.MAIL, Answer.NO): Stage.RCPT,
        (Stage.RCPT, Answer.YES): Stage.FINAL,
        (Stage.RCPT, Answer.NO): Stage.FINAL,
    },
}

#: the same by numbers: NEXT[style][stage][answer], None for what cannot happen
NEXT: Final = tuple(
    tuple(tuple(TRANSITIONS[style].get((stage, answer)) for answer in Answer) for stage in Stage) for style in Style
)

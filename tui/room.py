"""What is remembered about the room that is open, and only while it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from node.client.model import Conversation, Message


@dataclass(eq=False)
class Room:
    """An open conversation, or an address that nothing was sent to yet, or nothing at all."""

    id: str | None = None  # the other's address, until the node took the first message
    conversation: Conversation | None = None
    is_loading: bool = True  # its messages are on the way; news waits
    waiting: list[Message] = field(default_factory=list)
    has_older: bool = False
    is_loading_older: bool = False
    line_is_done: bool = False  # all below the unread line was read and the person looked away: it may move
    asked_read: tuple[int, int] | None = None  # the last unread mark that `read` was sent for

    @property
    def title(self) -> str:
        return self.conversation.title if self.conversation is not None else self.id or ""

    def find(self, conversations: Sequence[Conversation]) -> Conversation | None:
        """This room in a list; it has another id there once the node took the first message."""
        same = [c for c in conversations if c.id == self.id] or [c for c in conversations if c.title == self.title]
        return same[0] if same else None

    def holds(self, conversation: str) -> bool:
        """Whether a message belongs here, whichever of its two ids it carries."""
        return bool(conversation) and conversation in (self.id, self.title)

    @property
    def is_request(self) -> bool:
        return self.conversation is not None and self.conversation.request

    @property
    def unread(self) -> int:
        return self.conversation.unread if self.conversation is not None else 0

    def unread_mark(self) -> tuple[int, int] | None:
        """What there is to mark as read; none if nothing, or if it was asked for already."""
        if self.conversation is None or self.is_request or not self.unread:
            return None
        mark = (self.unread, self.conversation.last_stamp)
        return None if mark == self.asked_read else mark

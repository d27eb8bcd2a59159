"""What is remembered about the room that is open, and only while it is."""

from dataclasses import dataclass, field

from node.client.model import Conversation, Message


@dataclass(eq=False)
class Room:
    """An open conversation, or an address that nothing was sent to yet, or nothing at all."""

    id: str | None = None
    conversation: Conversation | None = None
    address: str = ""  # of a room that had no id yet when it was opened
    is_loading: bool = True  # its messages are on the way; news waits
    waiting: list[Message] = field(default_factory=list)
    has_older: bool = False
    is_loading_older: bool = False
    line_is_done: bool = False  # all below the unread line was read and the person looked away: it may move
    asked_read: tuple[int, int] | None = None  # the last unread mark that `read` was sent for

    @property
    def title(self) -> str:
        return self.conversation.title if self.conversation is not None else self.address

    @property
    def target(self) -> str | None:
        """Where a message goes."""
        return self.id or self.address or None

    def holds(self, conversation: str) -> bool:
        """Whether a message belongs here: until the node took the first one, the address stands for the id."""
        return bool(conversation) and conversation in (self.id, self.address, self.title)

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

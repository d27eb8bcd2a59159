"""Who types and who is there, as far as it is told; newest only."""

from node.client.model import Change, Presence, Typing


class People:
    """What the signs of life of others add up to."""

    def __init__(self) -> None:
        self._typing: dict[tuple[str, str], None] = {}  # conversation, address; in the order they began
        self.present: dict[str, str] = {}  # address -> online or away

    def take(self, change: Change) -> bool:
        """Whether anything is to be drawn anew. A message of somebody ends their typing."""
        sign, message = change.sign, change.message
        if isinstance(sign, Typing):
            key = (sign.conversation, sign.who)
            if sign.on == (key in self._typing):
                return False
            self._typing.pop(key, None)
            self._typing |= {key: None} if sign.on else {}
            return True
        if isinstance(sign, Presence):
            old = self.present.pop(sign.who, "offline")
            if sign.state != "offline":
                self.present[sign.who] = sign.state
            return old != sign.state
        if message is None or (message.conversation, message.sender) not in self._typing:
            return False
        del self._typing[message.conversation, message.sender]
        return True

    def typing(self, conversation: str | None) -> list[str]:
        return [who for room, who in self._typing if room == conversation]

"""Typed refusals: one code per reason, temporary or final, with a text that is safe to show to strangers."""


class ProtocolError(Exception):
    """Bytes or claims that PROTOCOL.md forbids.

    `rule` is the PROTOCOL.md number that was broken, `code` the short reason sent to the other side.
    """

    def __init__(self, code: str, message: str, rule: str) -> None:
        super().__init__(f"{message} (PROTOCOL.md {rule})")
        self.code = code
        self.rule = rule


class AddressError(ValueError):
    """A name or address that is not in the grammar; `str()` names the part and what to write instead."""

"""What callers of the SDK may catch, besides the node's own typed refusals (`node.api.ApiError`)."""


class ClientError(Exception):
    """Anything that went wrong on this side of the connection; `str()` is for a person."""


class Unreachable(ClientError):
    """No connection to the node; says what was tried and what to do next."""


class Lost(ClientError):
    """The connection broke before the answer: the outcome is unknown, repeating with the same key is safe."""


class Ended(ClientError):
    """The node of this process failed: nothing more comes from it, until the program opens it again."""


class NodeKeyError(ClientError):
    """Whoever answered is not the node of the link: nothing was told to it."""


class ProfileError(ClientError):
    """A profile that does not exist, is not private, or cannot be made."""


class ProfileInUse(ProfileError):
    """Another process has the profile open."""


class StoreError(ClientError):
    """The local store cannot be used."""


class NewerStore(StoreError):
    """The local store was written by a newer version, which may keep things this one does not know."""

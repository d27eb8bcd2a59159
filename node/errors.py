"""Why a node cannot start or go on. `str()` of each says what to do about it."""

from node.client.errors import Ended


class NodeError(Exception):
    """The node cannot start or go on; `str()` says what to do about it."""


class CannotListen(NodeError):
    """The `listen` setting names nothing that can be listened on here."""


class BusyPort(CannotListen):
    """Another program listens there."""


class DataDirInUse(NodeError):
    pass


class NewerDatabase(NodeError):
    pass


class StoreUnusable(NodeError):
    pass


class StoreDamaged(StoreUnusable):
    """The database's own structure is damaged."""


class KeyExposed(NodeError):
    pass


class BackupError(NodeError):
    """There is no backup, or it cannot be restored; nothing was changed."""


class NodeFailed(NodeError, Ended):
    """The store took no commit: the node stopped, and what it accepted before is safe."""


class NodeDamaged(NodeFailed):
    """The database's own structure is damaged: the node stopped before it made anything worse."""

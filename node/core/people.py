"""Accounts, devices and invites: made, changed, ended."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from federation.errors import AddressError
from federation.ids import check_local_name
from node.api import ApiError
from node.core import rows
from node.core.authorize import authorize
from node.core.context import Context
from node.core.view import Key, View


def check_name(name: str) -> str:
    try:
        return check_local_name(name)
    except AddressError as error:
        raise ApiError("bad_request", str(error)) from None


@dataclass(frozen=True, slots=True)
class AddAccount:
    """A new user; with `invite` (the SHA-256 of its code) the invite is used up in the same commit."""

    grows: ClassVar[bool] = True  # not taken while the disk has no room

    local: str
    password: str
    invite: bytes | None = None

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Account, (self.local,)
        if self.invite is not None:
            yield rows.Invite, (self.invite,)

    def decide(self, view: View, context: Context) -> rows.Account:
        check_name(self.local)
        if self.invite is not None:
            invite = view.get(rows.Invite, self.invite)
            if invite is None or invite.used_by or invite.revoked_ms or invite.expires_ms < context.now_ms:
                raise ApiError("bad_invite", "the invite is unknown, used, expired or revoked; ask for a new one")
            view.put(invite._replace(used_by=self.local))
        if view.get(rows.Account, self.local) is not None:
            raise ApiError("name_taken", f"the name {self.local} is taken or was used before; choose another")
        account = rows.Account(self.local, self.password, "", "active", "strangers", context.now_ms)
        view.put(account)
        return account


@dataclass(frozen=True, slots=True)
class ChangeAccount:
    """Change what is given. A deleted account keeps its name for ever and never changes again."""

    local: str
    state: Literal["active", "disabled", "deleted"] | None = None
    password: str | None = None
    display_name: str | None = None
    requests: str | None = None
    presence: str | None = None
    revoke: tuple[bytes, ...] = ()  # devices of the user that end with it
    while_held: ClassVar = True

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Account, (self.local,)
        yield from ((rows.Device, (device,)) for device in self.revoke)

    def decide(self, view: View, context: Context) -> rows.Account:
        account = view.get(rows.Account, self.local)
        if account is None or account.state == "deleted":
            raise ApiError("not_found", f"there is no user {self.local}")
        if (self.display_name, self.requests, self.presence) != (None, None, None):  # what people change themselves
            authorize(view, context, self.local, "profile")
        account = account._replace(
            state=self.state or account.state,
            password=account.password if self.password is None else self.password,
            display_name=account.display_name if self.display_name is None else self.display_name,
            requests=self.requests or account.requests,
            presence=self.presence or account.presence,
        )
        if account.state == "deleted":
            account = account._replace(password="", display_name="")
        view.put(account)
        for id_ in self.revoke:
            device = view.get(rows.Device, id_)
            if device is not None and device.local == self.local and not device.revoked_ms:
                view.put(device._replace(revoked_ms=context.now_ms))
                view.hint("device", id_)
        if account.state != "active":
            view.hint("account", self.local)
        return account


@dataclass(frozen=True, slots=True)
class AddDevice:
    """A login succeeded: one more device of the user."""

    grows: ClassVar[bool] = True  # not taken while the disk has no room

    device: bytes
    local: str
    name: str
    token_hash: bytes
    signing_key: bytes
    password: str | None = None  # the stored hash that was found right, if any: it may have changed meanwhile

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Account, (self.local,)

    def decide(self, view: View, context: Context) -> rows.Device:
        account = view.get(rows.Account, self.local)
        if account is None or account.state == "deleted":
            raise ApiError("bad_login", "name or password is wrong")
        if self.password is not None and self.password != account.password:
            raise ApiError("bad_login", "name or password is wrong")
        if account.state != "active":
            raise ApiError("disabled", "the account is disabled; ask its administrator")
        now = context.now_ms
        row = rows.Device(self.device, self.local, self.name, self.token_hash, self.signing_key, now, now, 0, 0)
        view.put(row)
        return row


@dataclass(frozen=True, slots=True)
class ChangeDevice:
    """Rename or revoke a device of this user."""

    local: str
    device: bytes
    name: str | None = None
    revoke: bool = False

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Account, (self.local,)
        yield rows.Device, (self.device,)

    def decide(self, view: View, context: Context) -> rows.Device:
        authorize(view, context, self.local, "devices")
        device = view.get(rows.Device, self.device)
        if device is None or device.local != self.local or device.revoked_ms:
            raise ApiError("not_found", "you have no such device")
        if self.name is not None:
            device = device._replace(name=self.name)
        if self.revoke:
            device = device._replace(revoked_ms=context.now_ms)
            view.hint("device", self.device)
        view.put(device)
        return device


@dataclass(frozen=True, slots=True)
class AddInvite:
    grows: ClassVar[bool] = True

    code_hash: bytes
    expires_ms: int

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> rows.Invite:
        invite = rows.Invite(self.code_hash, context.now_ms, self.expires_ms, "", 0)
        view.put(invite)
        return invite


@dataclass(frozen=True, slots=True)
class RevokeInvite:
    code_hash: bytes
    while_held: ClassVar = True

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Invite, (self.code_hash,)

    def decide(self, view: View, context: Context) -> rows.Invite:
        invite = view.get(rows.Invite, self.code_hash)
        if invite is None:
            raise ApiError("not_found", "there is no such invite")
        view.put(invite._replace(revoked_ms=context.now_ms))
        return invite

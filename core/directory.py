"""From the key behind a request to the caller our settings know: groups, tier, trust."""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from core.access import TierAccess
from core.context import Caller, Claims, Principal
from core.errors import BadField
from core.settings import Settings
from core.settings.models import Key

Resolve = Callable[[str], str | None]
"""The value behind a secret reference, None where there is none."""


def hash_key(key: str) -> str:
    """How a key is known everywhere: the hex SHA-256 of its text, as LiteLLM stores it."""
    return hashlib.sha256(key.encode()).hexdigest()


class Directory:
    """Keys, groups and tiers of one settings snapshot, indexed for a look-up per request."""

    def __init__(self, settings: Settings, resolve: Resolve, models: Iterable[str]) -> None:
        self._settings = settings
        self._models = tuple(models)
        self._names = (*self._models, *settings.routing.policies)
        self.access = TierAccess(settings.tiers)
        self.unresolved: list[str] = []
        self._keys: dict[str, Key] = {}
        for entry in settings.keys:
            key_hash = self._hash_of(entry, resolve)
            if key_hash is not None:
                self._keys[key_hash] = entry
        self._groups_of_user: dict[str, list[str]] = defaultdict(list)
        self._groups_of_team: dict[str, list[str]] = defaultdict(list)
        for name, group in settings.groups.items():
            for user in group.users:
                self._groups_of_user[user].append(name)
            for team in group.teams:
                self._groups_of_team[team].append(name)

    def _hash_of(self, entry: Key, resolve: Resolve) -> str | None:
        if entry.key_hash is not None:
            return entry.key_hash.removeprefix("sha256:")
        value = resolve(entry.key) if entry.key else None
        if not value:
            self.unresolved.append(entry.key or "")
            return None
        return hash_key(value)

    @property
    def entries(self) -> Mapping[str, Key]:
        """The keys of the configuration by their hash."""
        return self._keys

    def key(self, presented: str) -> tuple[str, Key] | None:
        """The hash and the entry of a presented key, None if it is not one of ours.

        The look-up is by SHA-256, so its timing depends on the digest and says nothing about a key; the final
        comparison takes constant time.
        """
        key_hash = hash_key(presented)
        for known in self._keys.keys() & {key_hash}:
            if hmac.compare_digest(known, key_hash):
                return key_hash, self._keys[known]
        return None

    def models_of(self, entry: Key) -> tuple[str, ...] | None:
        """The model groups and policies `entry` may ask for, its globs resolved; None for every one there is."""
        if "*" in entry.models:
            return None
        return tuple(
            dict.fromkeys(
                name
                for pattern in entry.models
                for name in (self._names if _is_glob(pattern) else (pattern,))
                if fnmatchcase(name, pattern)
            )
        )

    def knows(self, key_hash: str | None) -> bool:
        """Whether the key is one of ours."""
        return key_hash in self._keys

    def caller(self, principal: Principal) -> Caller:
        """The caller behind `principal`: configuration and team metadata grant, the key's own metadata only narrows."""
        entry = self._keys.get(principal.key_hash) if principal.key_hash else None
        own = principal.key_metadata or {}
        team = principal.team_metadata or {}
        user_id = principal.user_id or (entry.user_id if entry else None)
        team_id = principal.team_id or (entry.team_id if entry else None)
        granted = self._granted_tier(entry, team, own, principal)
        tier, tiers = self._narrowed_tier(granted, _text(own.get("tier")))
        return Caller(
            key_hash=principal.key_hash,
            key_alias=principal.key_alias,
            user_id=user_id,
            team_id=team_id,
            groups=self._groups(user_id, team_id, team, own),
            tier=tier,
            tiers=tiers,
            trusted=bool(entry.trusted) if entry else principal.is_admin or team.get("trusted") is True,
            is_admin=principal.is_admin,
        )

    def claimed(self, caller: Caller, claims: Claims) -> Caller:
        """The caller a trusted key speaks for; claims of any other key change nothing.

        Raises `BadField` for a tier that does not exist.
        """
        if not caller.trusted or (claims.user_id is None and claims.user_tier is None):
            return caller
        user_id = claims.user_id or caller.user_id
        tier, tiers = caller.tier, caller.tiers
        if claims.user_tier is not None:
            if claims.user_tier not in self._settings.tiers:
                valid = ", ".join(sorted(self._settings.tiers)) or "none are configured"
                raise BadField(f"user_tier {claims.user_tier!r} is not a tier; valid: {valid}.")
            tier, tiers = claims.user_tier, (claims.user_tier,)
        groups = tuple(dict.fromkeys((*caller.groups, *self._groups_of_user.get(user_id or "", ()))))
        if claims.user_id is not None and claims.user_id != caller.user_id:
            groups = self._groups(user_id, caller.team_id, {}, {})
        return Caller(
            key_hash=caller.key_hash,
            key_alias=caller.key_alias,
            user_id=user_id,
            team_id=caller.team_id,
            groups=groups,
            tier=tier,
            tiers=tiers,
            trusted=True,
            is_admin=caller.is_admin,
        )

    def _granted_tier(
        self, entry: Key | None, team: Mapping[str, Any], own: Mapping[str, Any], principal: Principal
    ) -> str | None:
        if not self._settings.tiers:
            return None
        granted = (entry.tier if entry else None) or _text(team.get("tier"))
        if granted is None and self._settings.trust_key_metadata:
            granted = _text(own.get("tier"))
        if granted is None and not principal.is_admin:
            granted = self._settings.default_tier
        return granted

    def _narrowed_tier(self, granted: str | None, wish: str | None) -> tuple[str | None, tuple[str, ...]]:
        if wish is None or wish == granted or wish not in self._settings.tiers:
            return granted, () if granted is None else (granted,)
        if granted is None:
            return wish, (wish,)
        deciding = wish if self.access.narrower(wish, granted, self._models) else granted
        return deciding, (granted, wish)

    def _groups(
        self, user_id: str | None, team_id: str | None, team: Mapping[str, Any], own: Mapping[str, Any]
    ) -> tuple[str, ...]:
        names = dict.fromkeys(self._groups_of_user.get(user_id, ()) if user_id else ())
        if team_id:
            names.update(dict.fromkeys(self._groups_of_team.get(team_id, ())))
        names.update(dict.fromkeys(_texts(team.get("groups"))))
        wish = _texts(own.get("groups"))
        if wish and self._settings.trust_key_metadata:
            names.update(dict.fromkeys(wish))
        elif wish:
            names = {name: None for name in names if name in wish}
        return tuple(names)


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        return ()
    return tuple(item for item in cast("Iterable[Any]", value) if isinstance(item, str))

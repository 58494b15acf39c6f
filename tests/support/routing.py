"""Our hooks in this process, over real settings, asked what LiteLLM would ask them: no proxy, no network, no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from fastapi import HTTPException

from core.budgets.catalog import Catalog
from core.directory import Directory, hash_key
from core.settings import Settings
from core.snapshot import Snapshot
from custom_router.experiments.agreed import Agreed
from plugins import compat, payment, route
from plugins.exchange import Exchange, current
from plugins.hooks import Orchestration
from plugins.routing.candidates import Candidates
from plugins.routing.live import Loads
from plugins.routing.service import Routing

Deployment = dict[str, Any]
"""As LiteLLM has them in `model_list`; Any because it has whatever the configuration has."""


def deployment(group: str, name: str = "", **model_info: Any) -> Deployment:
    """A deployment of a group with the id `<group>-<name>`."""
    info = {"id": f"{group}-{name}", **model_info}
    return {"model_name": group, "litellm_params": {"model": f"openai/{group}"}, "model_info": info}


def key(name: str, **fields: Any) -> dict[str, Any]:
    """An entry of `keys` for the user of a name, which is the key as well."""
    return {"key_hash": f"sha256:{hash_key(name)}", "user_id": name, **fields}


class Asking:
    """A request that LiteLLM has authenticated: what became of its body, and who may serve it."""

    def __init__(self, desk: RoutingDesk, exchange: Exchange, data: dict[str, Any]) -> None:
        self.desk = desk
        self.exchange = exchange
        self.data = data
        self.status = 200
        """That of the refusal, where the hook refused it."""

    async def begin(self, auth: Any) -> Self:
        """As LiteLLM does before it routes."""
        current.set(self.exchange)
        try:
            await self.desk.hooks.async_pre_call_hook(auth, None, self.data, "acompletion")
        except HTTPException as refused:
            self.status = refused.status_code
        return self

    @property
    def refusal(self) -> str:
        assert self.exchange.refusal is not None
        return self.exchange.refusal.message

    @property
    def ranked(self) -> list[str]:
        """The groups in the order in which LiteLLM tries them."""
        fallbacks = self.data.get("fallbacks") or ()
        return [self.data["model"], *(one["model"] if isinstance(one, dict) else one for one in fallbacks)]

    async def deployments(self, group: str) -> list[str]:
        """The ids of the deployments that an attempt at a group may go to, wherever LiteLLM has the group from."""
        current.set(self.exchange)
        healthy = list(self.desk.deployments.get(group, ()))
        call = {"litellm_call_id": self.exchange.call_id}
        found = await self.desk.hooks.async_filter_deployments(group, healthy, None, call)
        return [str(one["model_info"]["id"]) for one in found]


class RoutingDesk:
    """One worker's routing over an `orchestration:` section and the deployments of each group.

    `with RoutingDesk(...) as desk:`; there is one at a time, since hooks find the worker's routing in a module.
    """

    def __init__(
        self, section: Mapping[str, Any], deployments: Mapping[str, Sequence[Deployment]], *, version: int = 1
    ) -> None:
        self.deployments = deployments
        self.runtime: Any = SimpleNamespace(disabled_deployments=frozenset(), document={})
        self.runtime.snapshot = self.snapshot_of(section, version)
        self.loads = Loads(lambda _group, _task: 100)
        self.routing = Routing(self.runtime, self.loads, Candidates(lambda name: self.deployments.get(name, ())))
        self.routing.agreed = Agreed()
        self.hooks = Orchestration(self.runtime)

    def snapshot_of(self, section: Mapping[str, Any], version: int) -> Snapshot:
        settings = Settings.model_validate(section)
        models = tuple(self.deployments)
        return Snapshot(
            settings=settings,
            directory=Directory(settings, lambda _: None, models),
            policies=settings.routing.policies,
            catalog=Catalog(settings.budgets, models),
            digest=f"digest-{version}",
            version=version,
            loaded_at=0.0,
        )

    def identity(self, name: str) -> Any:
        """What LiteLLM's authentication says of a key that `key` made."""
        directory = self.runtime.snapshot.directory
        found = directory.key(name)
        assert found is not None, name
        key_hash, entry = found
        models = directory.models_of(entry)
        return compat.key_identity(key_hash, user_id=entry.user_id, team_id=entry.team_id, models=models, alias=None)

    async def ask(
        self,
        who: str | Any,
        data: Mapping[str, Any],
        endpoint: str = "chat_completions",
        headers: Mapping[str, str] | None = None,
        body_bytes: int = 100,
    ) -> Asking:
        """A request with the key of a name, or with an identity."""
        auth = self.identity(who) if isinstance(who, str) else who
        raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        exchange = Exchange(endpoint, raw, body_bytes)
        given = {"messages": [{"role": "user", "content": "hi"}], "litellm_call_id": exchange.request_id, **data}
        return await Asking(self, exchange, given).begin(auth)

    def __enter__(self) -> Self:
        self._before = route.routing, payment.budgets
        route.routing, payment.budgets = self.routing, None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        route.routing, payment.budgets = self._before
        current.set(None)

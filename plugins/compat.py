"""The one module that reaches into LiteLLM's proxy beyond its documented hooks.

Everything here is exercised by tests/live/test_litellm_versions.py against the oldest and the newest LiteLLM we
support. The proxy's globals are None while callbacks load, so they are read when needed, never kept.
"""

import hmac
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import litellm
from fastapi import APIRouter, Request
from litellm.litellm_core_utils.credential_accessor import CredentialAccessor
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, ProxyException, SpecialModelNames, UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import can_key_call_resolved_model
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from litellm.proxy.openai_files_endpoints.common_utils import (
    decode_model_from_file_id,
    encode_file_id_with_model,
    get_original_file_id,
)
from litellm.proxy.shutdown.graceful_shutdown_manager import GracefulShutdownManager
from litellm.types.router import Deployment
from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from core.context import Principal
from core.settings import Loaded
from core.settings.reference import is_vault_reference
from secrets_manager.provider import SecretUnavailable
from secrets_manager.proxy import secrets

_ADMIN = LitellmUserRoles.PROXY_ADMIN
_VIEWER = LitellmUserRoles.PROXY_ADMIN_VIEW_ONLY


def config_path() -> Path | None:
    """The file LiteLLM read its configuration from, None if it was not a file."""
    path = proxy_server.user_config_file_path
    return Path(path).resolve() if path else None


def wrap_app(wrapper: Callable[[Any], Any]) -> None:
    """Put `wrapper` round the whole app, outside every middleware; callable while the app starts or before."""
    app = proxy_server.app
    if app.middleware_stack is not None:
        app.middleware_stack = wrapper(app.middleware_stack)
        return
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: wrapper(build())  # type: ignore[method-assign]


def spare_contexts() -> None:
    """Take the finalizer from LiteLLM's streams, which sets context variables for the log lines of abandoned ones.

    Before Python 3.12 a garbage collection may begin while a context variable is being set, and a finalizer that then
    sets another frees what is just copied (python/cpython#148891): the process crashes, or a variable is lost, and with
    it what a request is to be charged to.
    """
    if sys.version_info < (3, 12) and "__del__" in vars(CustomStreamWrapper):
        del CustomStreamWrapper.__del__


def mount(router: APIRouter) -> None:
    """Add our routes to LiteLLM's app."""
    proxy_server.app.include_router(router)


def mount_first(router: APIRouter) -> None:
    """Add our routes in front of LiteLLM's of the same path."""
    routes = proxy_server.app.router.routes
    known = len(routes)
    proxy_server.app.include_router(router)
    beginnings = tuple({str(getattr(route, "path", "")).partition("{")[0] for route in router.routes})
    routes[:] = [_Under(beginnings, route) for route in routes[known:]] + routes[:known]


class _Under(BaseRoute):
    """A route, or a router of them, that is asked only about paths in which one of these stands: matching is slow, and
    every request to a model passes what stands in front of LiteLLM's routes."""

    def __init__(self, beginnings: tuple[str, ...], route: BaseRoute) -> None:
        self._beginnings = beginnings
        self._route = route

    def __getattr__(self, name: str) -> Any:  # whoever lists an app's routes wants to see this one's
        return getattr(self._route, name)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        for beginning in self._beginnings:
            if beginning in path:
                return self._route.matches(scope)
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        return self._route.url_path_for(name, **path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._route.handle(scope, receive, send)


async def call_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Make a request of our own to LiteLLM's app."""
    await proxy_server.app(scope, receive, send)


def shutting_down() -> bool:
    """Whether LiteLLM's shutdown has come to where it waits for the requests in flight."""
    return GracefulShutdownManager.is_shutting_down()


def database_connected() -> bool:
    return proxy_server.prisma_client is not None


def has_router() -> bool:
    return proxy_server.llm_router is not None


def model_groups() -> tuple[str, ...]:
    """The names of the model groups that the live router serves, aliases left out."""
    router = proxy_server.llm_router
    if router is None:
        return ()
    return tuple(dict.fromkeys(deployment["model_name"] for deployment in router.model_list))


def deployments_of(group: str) -> list[dict[str, Any]]:
    """The `model_list` entries that serve a group or an alias of one."""
    router = proxy_server.llm_router
    found: Any = [] if router is None else router.get_model_list(model_name=group)
    return list(found or [])


def asked_by_id(call: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """The id, the group and the `model_list` entry of the deployment that a call goes to, where it was asked for by
    its id: LiteLLM then asks no filter. None for any other call."""
    metadata = call.get("litellm_metadata") or call.get("metadata") or {}
    named, group = metadata.get("model_group"), metadata.get("deployment_model_name")
    if named is None or group is None or named == group or (metadata.get("model_info") or {}).get("id") != named:
        return None
    for entry in deployments_of(group):
        if (entry.get("model_info") or {}).get("id") == named:
            return named, group, entry
    return None


def reports_stream_usage(groups: Sequence[str]) -> bool:
    """Whether every deployment of `groups` can be asked for usage in a stream; an unknown provider cannot."""
    router = proxy_server.llm_router
    if router is None:
        return False
    models = [
        str(deployment["litellm_params"].get("model"))
        for group in groups
        for deployment in router.get_model_list(model_name=group) or []
    ]
    return bool(models) and all(_takes_stream_options(model) for model in models)


@lru_cache(maxsize=512)
def _takes_stream_options(model: str) -> bool:
    try:
        return "stream_options" in (litellm.get_supported_openai_params(model=model) or ())
    except Exception:  # LiteLLM raises what it likes for a model it does not know
        return False


def announce_policies(first_candidates: Mapping[str, str], known_before: Mapping[str, str]) -> None:
    """Make policy names known to the live router, so that LiteLLM lists them and lets keys ask for them.

    An alias is also what serves a policy should our hook ever not run: its first candidate.
    """
    router = proxy_server.llm_router
    if router is None:
        return
    aliases = dict(router.model_group_alias or {})
    for name, candidate in known_before.items():
        if aliases.get(name) == candidate:
            del aliases[name]
    router.model_group_alias = {**aliases, **first_candidates}


def policies_announced(first_candidates: Mapping[str, str]) -> bool:
    router = proxy_server.llm_router
    if router is None:
        return True
    aliases = router.model_group_alias or {}
    return all(aliases.get(name) == candidate for name, candidate in first_candidates.items())


def apply_deployment(entry: Mapping[str, Any]) -> None:
    """Add or change one `model_list` entry in the live router; it serves from the next request on.

    Raises ValueError for one that LiteLLM does not take.
    """
    router = proxy_server.llm_router
    assert router is not None
    router.upsert_deployment(Deployment(**entry))
    if router.get_deployment(model_id=entry["model_info"]["id"]) is None:
        raise ValueError(f"LiteLLM does not take the deployment {entry['model_name']}; its log says why")


def remove_deployment(deployment_id: str) -> None:
    router = proxy_server.llm_router
    assert router is not None
    router.delete_deployment(id=deployment_id)


def resolve_references(value: Any) -> Any:
    """`os.environ/…` in a `model_list` entry, as LiteLLM resolves it when it loads the file.

    Raises `ValueError` naming the reference that has no value.
    """
    if isinstance(value, dict):
        return {name: resolve_references(item) for name, item in value.items()}
    if isinstance(value, str) and value.startswith("os.environ/"):
        resolved = _as_litellm_reads(value)
        if resolved is None:
            raise ValueError(f"{value} has no value")
        return resolved
    return value


def _as_litellm_reads(reference: str) -> str | None:
    if not is_vault_reference(reference):
        return secret(reference)
    try:
        return secrets().for_litellm(reference)
    except SecretUnavailable:
        return None


def read_secrets(loaded: Loaded) -> None:
    """Have the secrets of a configuration read. Raises `ConfigError` where it must not be used."""
    secrets().configure(loaded.settings, loaded.document)


def secret(reference: str) -> str | None:
    """The value behind an `os.environ/…` reference: ours, or what LiteLLM resolves it to."""
    if is_vault_reference(reference):
        try:
            return secrets().value(reference)
        except SecretUnavailable:
            return None
    from litellm.secret_managers.main import get_secret

    value = get_secret(reference)
    return value if isinstance(value, str) else None


def spread_credential(call: dict[str, Any]) -> None:
    """Put the values of a named credential into a call, as LiteLLM does itself once our hook is done with it."""
    name = call.get("litellm_credential_name")
    if name:
        for field, value in CredentialAccessor.get_credential_values(name).items():
            call.setdefault(field, value)


def cannot_call(message: str, call: Mapping[str, Any]) -> Exception:
    """The error of a call that cannot be made, for want of a secret or of money; LiteLLM falls back on it."""
    return litellm.exceptions.ServiceUnavailableError(
        message=message, model=str(call.get("model")), llm_provider=str(call.get("custom_llm_provider") or "")
    )


def spare_cooldown(call: Mapping[str, Any]) -> None:
    """Keep the deployment of a failed call in service: what failed is mended already.

    The router reads the time from the call's own copy of `model_info`, and zero means none.
    """
    logging = call.get("litellm_logging_obj")
    parameters = (getattr(logging, "model_call_details", None) or {}).get("litellm_params") or {}
    for info in (call.get("model_info"), parameters.get("model_info")):
        if isinstance(info, dict):
            info["cooldown_time"] = 0


def retry_policy() -> Mapping[str, Any] | None:
    """`router_settings.model_group_retry_policy` as it is in force."""
    router = proxy_server.llm_router
    return None if router is None else router.model_group_retry_policy


def principal_of(auth: Any) -> Principal:
    """What LiteLLM's authentication says about a key."""
    return Principal(
        key_hash=auth.token or auth.api_key,
        key_alias=auth.key_alias,
        user_id=auth.user_id,
        team_id=auth.team_id,
        key_metadata=auth.metadata,
        team_metadata=auth.team_metadata,
        is_admin=auth.user_role == _ADMIN,
    )


async def may_call(auth: Any, model: str) -> bool:
    """Whether LiteLLM lets the key, its user, team and project call `model`; a look-up that fails means no."""
    try:
        await can_key_call_resolved_model(
            model=model, llm_model_list=None, valid_token=auth, llm_router=proxy_server.llm_router
        )
    except ProxyException:
        return False
    return True


def lists_by_name(auth: Any, model: str) -> bool:
    """Whether the key names `model` itself, not by a wildcard or by having no list at all."""
    return model in (auth.models or ())


def is_master_key(presented: str) -> bool:
    master: Any = proxy_server.master_key
    return isinstance(master, str) and hmac.compare_digest(presented.encode(), master.encode())


def uses_jwt() -> bool:
    return proxy_server.general_settings.get("enable_jwt_auth") is True


def key_identity(
    key_hash: str, *, user_id: str | None, team_id: str | None, models: Sequence[str] | None, alias: str | None
) -> Any:
    """An identity LiteLLM enforces like that of one of its own keys: only `models`, no administration."""
    # To LiteLLM an empty list means every model.
    names = [] if models is None else list(models) or [SpecialModelNames.no_default_models.value]
    return UserAPIKeyAuth(
        api_key=key_hash,
        token=key_hash,
        key_alias=alias,
        user_id=user_id,
        team_id=team_id,
        models=names,
        team_models=[],
        user_role=LitellmUserRoles.INTERNAL_USER,
    )


def unauthorized(message: str) -> Exception:
    return ProxyException(message=message, type="auth_error", param="key", code=401)


def forbidden(message: str) -> Exception:
    return ProxyException(message=message, type="permission_error", param=None, code=403)


async def identify(request: Request) -> Any:
    """The identity behind a request to one of our own routes.

    LiteLLM refuses routes it does not know to ordinary keys, so it is asked about a route that any valid key may use.
    """
    scope = dict(request.scope, path="/v1/models", raw_path=b"/v1/models", method="GET", query_string=b"")
    for name in ("route", "endpoint", "path_params", "state"):
        scope.pop(name, None)

    async def no_body() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    asked = Request(scope, no_body)
    return await user_api_key_auth(
        request=asked,
        api_key=request.headers.get("authorization", ""),
        azure_api_key_header=request.headers.get("api-key", ""),
        anthropic_api_key_header=request.headers.get("x-api-key"),
        google_ai_studio_api_key_header=request.headers.get("x-goog-api-key"),
        azure_apim_header=request.headers.get("ocp-apim-subscription-key"),
        custom_litellm_key_header=request.headers.get("x-litellm-api-key"),
    )


def may_change(auth: Any) -> bool:
    """Whether an identity may change the proxy's administration."""
    return auth.user_role == _ADMIN


def may_read(auth: Any) -> bool:
    """Whether an identity may see the proxy's administration."""
    return auth.user_role in (_ADMIN, _VIEWER)


# -- batches and background responses ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchDeployment:
    """Where LiteLLM sends the files and batches of a model group: `model` is LiteLLM's string (`provider/name`), `name`
    what the provider calls it."""

    id: str | None
    provider: str
    model: str
    name: str


def batch_deployment(group: str) -> BatchDeployment | None:
    """The deployment whose credentials LiteLLM takes for `group`; None where it finds none."""
    router = proxy_server.llm_router
    found = None if router is None else router.get_deployment_credentials_with_provider(model_id=group)
    if not found:
        return None
    model, provider = str(found["model"]), str(found["custom_llm_provider"])
    ids = [
        (one.get("model_info") or {}).get("id")
        for one in deployments_of(group)
        if one["litellm_params"].get("model") == model
        and one["litellm_params"].get("api_base") == found.get("api_base")
    ]
    return BatchDeployment(next(iter(ids), None), provider, model, model.removeprefix(f"{provider}/"))


def model_of_id(file_or_batch: str) -> str | None:
    """The model group that LiteLLM has written into the id of a file or a batch; None where there is none in it."""
    return decode_model_from_file_id(file_or_batch)


def id_of_file(provider_id: str, group: str) -> str:
    """The id of a provider's file as LiteLLM tells it to clients."""
    return encode_file_id_with_model(file_id=provider_id, model=group)


async def ask_batch(batch_id: str, group: str, deployment: str | None) -> dict[str, Any]:
    """How a batch stands, in OpenAI's words; ids of files are the provider's. Raises whatever LiteLLM raises."""
    call = _outside_a_request(group, deployment)
    answer: Any = await litellm.aretrieve_batch(batch_id=get_original_file_id(batch_id), **call)
    return dict(answer.model_dump())


async def ask_file(provider_id: str, group: str, deployment: str | None) -> bytes:
    """The content of a provider's file. Raises whatever LiteLLM raises."""
    answer: Any = await litellm.afile_content(file_id=provider_id, **_outside_a_request(group, deployment))
    return answer.content


async def ask_response(response_id: str) -> Any:
    """A response in the background, as it is now. Raises whatever LiteLLM raises."""
    router = proxy_server.llm_router
    assert router is not None
    return await router.aget_responses(response_id=response_id)


def _outside_a_request(group: str, deployment: str | None) -> dict[str, Any]:
    router = proxy_server.llm_router
    assert router is not None
    found = deployment and router.get_deployment_credentials_with_provider(model_id=deployment)
    found = found or router.get_deployment_credentials_with_provider(model_id=group)
    if not found:
        raise LookupError(f"the model {group!r} is not configured any more")
    # LiteLLM would price the batch at every look, and read its output for it.
    quiet = {"model_group": group, "batch_ignore_default_logging": True}
    return {**found, "litellm_metadata": quiet}


def answers_by_polling() -> bool:
    """Whether LiteLLM itself answers requests in the background (`polling_via_cache`), and calls the model later."""
    return bool(getattr(proxy_server, "polling_via_cache_enabled", False))

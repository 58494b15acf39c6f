"""The routes of files and batches, while budgets or tiers exist.

An upload is read line by line, and LiteLLM gets it written anew: with the model's name as its provider knows it and the
output limits that the bound was made with. A batch is reserved for like one request that costs as much as all its lines
together; it is charged that sum until the poller knows better. Whatever else is asked about files and batches is
answered to their owners.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import HTTPException, Request

from core.asgi import App, Receive, Scope, Send
from core.context import Caller, RequestContext, read_claims
from core.errors import (
    BadField,
    BudgetExceeded,
    BudgetsUnavailable,
    CostUnbounded,
    ModelNotAllowed,
    NotFound,
    NotReady,
    RequestRefused,
    StoreError,
    StoreUnavailable,
    Unsupported,
)
from core.settings.models import AtLimit
from core.store.batches import BatchFile, Job, JobKind, Owner, Purpose
from plugins import compat, payment, route
from plugins.batches import lines
from plugins.batches.messages import (
    Held,
    ask_for_models,
    bounded,
    form,
    read_body,
    replay,
    rewritten,
    send_json,
    send_refusal,
)
from plugins.batches.refusals import no_batch, no_file
from plugins.budgets.enforcement import Asked
from plugins.budgets.prices import GroupPrices
from plugins.budgets.rates import ATTO_PER_NANO
from plugins.budgets.upper_bound import Bound
from plugins.exchange import Exchange
from plugins.limits import Entrance

if TYPE_CHECKING:
    from core.runtime import Runtime, Snapshot
    from core.store import Store

_LOG = logging.getLogger("orchestration.batches")
_PROVIDERS = frozenset({"openai", "azure"})
"""Providers whose lines reach them as they are: LiteLLM translates those of others, and what it makes of a limit is not
known here."""
_UPLOAD_FIELDS = frozenset({"purpose", "file", "model", "target_model_names"})
_EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")
_BATCH_FIELDS = frozenset({"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"})
_AT_ONCE = 2
"""Uploads that are read at the same time."""
_PAGE = 100


@dataclass(frozen=True, slots=True)
class _Asker:
    auth: Any
    caller: Caller


class Batches:
    """Made with the edge; nothing is asked of the runtime, or of the `entrance` in force, before a request comes."""

    def __init__(self, app: App, runtime: "Runtime", entrance: Callable[[], Entrance]) -> None:
        self._app = app
        self._runtime = runtime
        self._entrance = entrance
        self._reading = asyncio.Semaphore(_AT_ONCE)

    async def serve(self, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything but the creation of a batch; nothing here costs money."""
        try:
            await self._ready()
            await self._entrance().arrive(scope)
            try:
                asker = await self._asker(scope)
            except (HTTPException, compat.ProxyException):
                await ask_for_models(self._app, scope, send)
                return
            if endpoint == "files":
                await self._upload(asker, scope, receive, send)
            elif endpoint == "file":
                await self._file(asker, scope, receive, send)
            elif endpoint == "batch":
                await self._batch(asker, scope, receive, send)
            else:
                await self._list(endpoint, asker, scope, receive, send)
        except StoreError as error:
            await send_refusal(send, StoreUnavailable(str(error)))
        except RequestRefused as refusal:
            await send_refusal(send, refusal)
        except ConnectionError:
            return

    # -- files ---------------------------------------------------------------------------------------------------

    async def _upload(self, asker: _Asker, scope: Scope, receive: Receive, send: Send) -> None:
        upload = Request(scope, bounded(receive, self._runtime.settings.limits.max_body_bytes))
        try:
            async with upload.form(max_files=1, max_fields=16) as given:
                fields = {name: value for name, value in given.items() if isinstance(value, str)}
                file = given.get("file")
                content = b"" if file is None or isinstance(file, str) else await file.read()
        except HTTPException as error:
            raise BadField(f"The form cannot be read: {error.detail}") from None
        if fields.get("purpose") != "batch":
            message = "Only files with purpose=batch can be uploaded while tiers or budgets are configured."
            raise Unsupported(message)
        if unknown := sorted(given.keys() - _UPLOAD_FIELDS - set(_EXPIRY)):
            raise BadField(
                f"The form has a field {unknown[0][:80]!r}, which would send the file elsewhere; leave it out."
            )
        beginning = lines.begin(content)
        for name in ("model", "target_model_names"):
            if fields.get(name, beginning.model) != beginning.model:
                raise BadField(f"{name} is {fields[name][:80]!r}, but the lines ask for {beginning.model[:80]!r}.")
        terms = await self._terms(asker, beginning.model)
        async with self._reading:
            found = await asyncio.to_thread(lines.read, content, beginning, terms)
        body, kind = form(
            {"purpose": "batch", **{n: fields[n] for n in _EXPIRY if n in fields}}, "batch.jsonl", found.body
        )
        model = beginning.model.encode()
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"x-litellm-model", model)]
        held = Held()
        await self._app(rewritten(scope, path="/v1/files", headers=headers), replay(body, receive), held.send)
        file_id = held.json().get("id")
        if isinstance(file_id, str):
            if compat.model_of_id(file_id) != beginning.model:
                raise Unsupported("LiteLLM did not send the file by its model; a newer version of it does.")
            await self._store.batches.keep_files(
                [
                    BatchFile(
                        id=file_id,
                        purpose=Purpose.INPUT,
                        owner=Owner.of(asker.caller),
                        model=beginning.model,
                        provider_model=terms.provider_model,
                        endpoint=beginning.url,
                        lines=found.count,
                        input_tokens=found.input_tokens,
                        bound_nano=found.bound_nano,
                        unbounded=found.unbounded,
                        prices=fingerprint(terms.prices),
                        created_ms=_now_ms(),
                    )
                ]
            )
        await held.release(send)

    async def _terms(self, asker: _Asker, model: str) -> lines.Terms:
        """What the lines of a file for `model` are read by. Raises where it may not be used in batches."""
        deployment = await self._check(asker, model)
        assert payment.budgets is not None
        tier = self._snapshot.settings.tiers.get(asker.caller.tier) if asker.caller.tier else None
        return lines.Terms(
            prices=payment.budgets.group(model).prices,
            provider_model=deployment.name,
            most_tokens=tier.max_tokens if tier is not None else None,
        )

    async def _check(self, asker: _Asker, model: str) -> compat.BatchDeployment:
        if model in self._snapshot.policies:
            raise Unsupported(f"{model!r} is a policy, and a batch cannot be routed; name one of its models.")
        # Names that LiteLLM takes besides those of groups, such as ids of deployments, are in no budget and no tier.
        deployment = compat.batch_deployment(model) if model in compat.model_groups() and "*" not in model else None
        context = RequestContext("", "batches", asker.caller, model, time_ms=_now_ms())
        plan = (await route.router(self._snapshot)).decide(context, lambda group: True)
        if plan.denied is not None:
            raise ModelNotAllowed(plan.denied, details={"model": model[:200], "rule": plan.denied_by})
        permitted = deployment is not None and model in plan.candidates
        if deployment is None or not permitted or not await compat.may_call(asker.auth, model):
            message = f"The model {model[:200]!r} is not permitted, or there is none; GET /v1/models lists yours."
            raise ModelNotAllowed(message, details={"model": model[:200], "tier": asker.caller.tier})
        if deployment.provider not in _PROVIDERS:
            raise Unsupported(
                f"Batches of {deployment.provider} cannot be bounded: LiteLLM translates their lines. Those of "
                f"{' and '.join(sorted(_PROVIDERS))} can."
            )
        return deployment

    async def _file(self, asker: _Asker, scope: Scope, receive: Receive, send: Send) -> None:
        if not _administers(asker, scope):
            file_id = id_in(scope["path"], "/files/", "/content")
            file = await self._store.batches.file(file_id)
            if file is None or not file.owner.is_(asker.caller):
                raise no_file(file_id)
        await self._app(rewritten(scope), receive, send)

    # -- batches -------------------------------------------------------------------------------------------------

    async def create(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> RequestRefused | None:
        """`POST /v1/batches`, as an exchange of its own; returns why it is refused."""
        try:
            await self._ready()
            try:
                asker = await self._asker(scope)
            except (HTTPException, compat.ProxyException):
                await ask_for_models(self._app, scope, send)
                return None
            await self._create(asker, exchange, scope, receive, send)
        except StoreError as error:
            return StoreUnavailable(str(error))
        except RequestRefused as refusal:
            return refusal
        except ConnectionError:
            return None
        return None

    async def _create(self, asker: _Asker, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _batch_asked(await read_body(receive))
        metadata = asked.get("metadata")
        claims = read_claims(exchange.headers, metadata)
        caller = self._snapshot.directory.claimed(asker.caller, claims)
        file_id: str = asked["input_file_id"]
        file = await self._store.batches.file(file_id)
        if file is None or file.purpose is not Purpose.INPUT or not (file.owner.is_(caller) or caller.is_admin):
            raise no_file(file_id)
        exchange.snapshot = self._snapshot
        exchange.principal = asker.auth
        exchange.context = RequestContext(
            request_id=exchange.request_id,
            endpoint=exchange.endpoint,
            caller=caller,
            asked_model=file.model,
            task_type=claims.task_type,
            session_id=claims.session_id,
            input_bytes=exchange.body_bytes,
        )
        if asked["endpoint"] != file.endpoint:
            raise BadField(f"endpoint is {asked['endpoint']!r}, but the lines of the file go to {file.endpoint}.")
        deployment = await self._check(_Asker(asker.auth, caller), file.model)
        assert payment.budgets is not None
        prices = fingerprint(payment.budgets.group(file.model).prices)
        if (prices, deployment.name) != (file.prices, file.provider_model):
            raise BadField(f"{file.model!r} has other prices since the file was uploaded; upload it again.")
        if exchange.entrance is not None:
            exchange.visit = await exchange.entrance.enter(exchange.context, count_input=lambda: 0, left=exchange.left)
        await self._reserve(exchange, exchange.context, file)
        exchange.deployment = deployment.id
        body = orjson.dumps(asked)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        held = Held()
        await self._app(rewritten(scope, path="/v1/batches", headers=headers), replay(body, receive), held.send)
        answer = held.json()
        batch_id = answer.get("id")
        if isinstance(batch_id, str):
            if not exchange.sent:
                await self._charge_unheard(exchange, file, deployment)
            now = _now_ms()
            job = Job(
                id=batch_id,
                kind=JobKind.BATCH,
                request_id=exchange.request_id,
                owner=Owner.of(caller),
                model=file.model,
                deployment=deployment.id,
                provider_model=deployment.model,
                endpoint=file.endpoint,
                input_file=file.id,
                reserved_nano=file.bound_nano,
                status=str(answer.get("status", "")),
                created_ms=now,
                next_ms=now,
            )
            try:
                await self._store.batches.keep_job(job)
            except StoreError as error:
                # It runs, and whoever made it has to know; it stays charged what was reserved.
                _LOG.error("batch %s of request %s will not be settled: %s", batch_id, exchange.request_id, error)
        await held.release(send)

    async def _charge_unheard(self, exchange: Exchange, file: BatchFile, deployment: compat.BatchDeployment) -> None:
        """The batch was created, though none of our hooks was told: it has to be paid for all the same."""
        _LOG.error("LiteLLM created the batch of request %s without its hooks", exchange.request_id)
        metadata = {"model_group": file.model, "model_info": {"id": deployment.id}}
        call = {"model": deployment.model, "litellm_metadata": metadata}
        attempt = exchange.begin_attempt(call, None)
        if attempt is not None:
            await payment.send(self._runtime, exchange, attempt, call)

    async def _reserve(self, exchange: Exchange, context: RequestContext, file: BatchFile) -> None:
        """Reserve what all lines can cost, in every budget that applies. Raises as `Enforcement.first_attempt`."""
        assert payment.budgets is not None
        exchange.bound_nano = file.bound_nano
        spending = payment.budgets.spending(self._snapshot, exchange.request_id, exchange.time_ms, context)
        exchange.asked = asked = Asked(exchange.endpoint, {}, 0, context.task_type)
        exchange.spending = spending
        if spending is None:
            return
        if file.unbounded is not None:
            for charge in spending.enforced(file.model):
                if charge.budget.at_limit is AtLimit.BLOCK:
                    raise CostUnbounded(
                        f"What this batch can cost at most is not known, and the budget {charge.budget.name!r} has to "
                        f"hold: {file.unbounded}. flat_reserve is for single requests.",
                        details={"budget_id": charge.budget.budget_id, "reasons": [file.unbounded]},
                    )
        spending.bounds[file.model] = Bound(input_atto=file.bound_nano * ATTO_PER_NANO, input_tokens=file.input_tokens)
        try:
            await payment.budgets.enforcement.first_attempt(spending, asked, [file.model], _nobody_else)
        except BudgetExceeded as refusal:
            payment.budgets.notices.refused(refusal, exchange.time_ms)
            raise

    async def _batch(self, asker: _Asker, scope: Scope, receive: Receive, send: Send) -> None:
        batch_id = id_in(scope["path"], "/batches/", "/cancel" if scope["method"] == "POST" else "")
        job = await self._store.batches.job(batch_id)
        owned = job is not None and job.kind is JobKind.BATCH and job.owner.is_(asker.caller)
        if not owned and not _administers(asker, scope):
            raise no_batch(batch_id)
        held = Held()
        await self._app(rewritten(scope), replay(await read_body(receive), receive), held.send)
        if job is not None:
            await self._store.batches.keep_files(outputs_of(job, held.json()))
        await held.release(send)

    async def _list(self, endpoint: str, asker: _Asker, scope: Scope, receive: Receive, send: Send) -> None:
        """LiteLLM lists what its provider has, whoever it belongs to: that is for administrators."""
        if _administers(asker, scope):
            await self._app(scope, receive, send)
            return
        if endpoint == "file_list":
            found = [_file_object(file) for file in await self._store.batches.files_of(asker.caller, _PAGE)]
        else:
            jobs = await self._store.batches.jobs_of(asker.caller, JobKind.BATCH, _PAGE)
            found = [_batch_object(job) for job in jobs]
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        await send_json(send, {"object": "list", "data": found, "has_more": False, **ends})

    # -- all of them ---------------------------------------------------------------------------------------------

    @property
    def _snapshot(self) -> "Snapshot":
        return self._runtime.snapshot

    @property
    def _store(self) -> "Store":
        assert self._runtime.store is not None
        return self._runtime.store

    async def _ready(self) -> None:
        await self._runtime.ready.wait()
        if self._runtime.failure is not None:
            raise NotReady(f"This worker could not start: {self._runtime.failure}")
        if payment.budgets is None or self._runtime.store is None:
            raise BudgetsUnavailable("The budgets of this worker are not there yet.", headers={"retry-after": "5"})

    async def _asker(self, scope: Scope) -> _Asker:
        auth = await compat.identify(Request(dict(scope)))
        caller = self._snapshot.directory.caller(compat.principal_of(auth))
        return _Asker(auth, self._snapshot.directory.claimed(caller, read_claims(scope["headers"], None)))


def begun(exchange: Exchange, auth: Any, data: dict[str, Any]) -> None:
    """LiteLLM is about to create a batch that is reserved for; `data` is what it calls the provider with.

    Its client must not try again by itself: what was not answered may run all the same, and a second batch is not paid
    for.
    """
    context = exchange.context
    if context is None or compat.principal_of(auth).key_hash != context.caller.key_hash:
        raise NotFound("The batch was asked for with another key than it is created with.")
    exchange.call = data.get("litellm_logging_obj")
    exchange.call_id = data.get("litellm_call_id")
    data["max_retries"] = 0
    metadata = data.setdefault("litellm_metadata", {})
    metadata["model_group"] = context.asked_model
    metadata["model_info"] = {"id": exchange.deployment}


def outputs_of(job: Job, answer: Mapping[str, Any]) -> list[BatchFile]:
    """The files that a batch's answer names, as clients know them, with the batch's owner."""
    ids = [answer.get(name) for name in ("output_file_id", "error_file_id")]
    return [
        BatchFile(one, Purpose.OUTPUT, job.owner, job.model, created_ms=_now_ms())
        for one in ids
        if isinstance(one, str) and one
    ]


def fingerprint(prices: GroupPrices) -> str:
    """A name for prices that changes with any of them."""
    text = json.dumps(asdict(prices), sort_keys=True, default=_plainly)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plainly(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else str(value)


def id_in(path: str, before: str, after: str) -> str:
    """The id in a path such as /v1/files/{id}/content."""
    rest = path.partition(before)[2]
    return rest.removesuffix(after) if after else rest


def _batch_asked(body: bytes) -> dict[str, Any]:
    try:
        asked: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadField(f"The body is not JSON: {error}.") from None
    if not isinstance(asked, dict):
        raise BadField("The body must be an object with input_file_id, endpoint and completion_window.")
    if unknown := sorted(asked.keys() - _BATCH_FIELDS):
        raise BadField(f"{str(unknown[0])[:80]!r} cannot be set for a batch here; the model is that of its file.")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(asked.get(name), str):
            raise BadField(f"{name} is missing, or not a text.")
    if not isinstance(asked.get("metadata", {}), dict | None):
        raise BadField("metadata must be an object of texts.")
    return asked


def _administers(asker: _Asker, scope: Scope) -> bool:
    return compat.may_change(asker.auth) or (scope["method"] in ("GET", "HEAD") and compat.may_read(asker.auth))


async def _nobody_else(groups: Any) -> list[str]:
    """A file is at one provider: no cheaper model can take its place."""
    return []


def _file_object(file: BatchFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "purpose": "batch" if file.purpose is Purpose.INPUT else "batch_output",
        "filename": "batch.jsonl",
        "bytes": 0,
        "created_at": file.created_ms // 1000,
        "status": "processed",
    }


def _batch_object(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "input_file_id": job.input_file,
        "completion_window": "24h",
        "status": job.status,
        "created_at": job.created_ms // 1000,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

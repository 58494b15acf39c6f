"""`/orchestration/experiments/…` beside their configuration: begun, paused, ended, and what came of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.errors import BadField, NotInstalled, StatisticsMissing
from core.live_overlay import Change
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.models import Experiment, ExperimentStatus
from core.settings.validation import nearest
from custom_router.experiments.allocation import buckets_of
from custom_router.experiments.hashing import BUCKETS
from plugins.admin.access import Changer, Reader, actor_of, answered, ready
from plugins.admin.entries import Conditions, Entries, json_body
from plugins.budgets.refusals import moment
from plugins.routing import experiments
from plugins.routing.evidence import History, history_of, periods_of

if TYPE_CHECKING:
    from core.store import Store

_FRESH_SECONDS = 5.0


def experiments_router(runtime: Runtime) -> APIRouter:
    """To be included before the routes of entries, whose addresses these go on from."""
    router = APIRouter()
    service = Experiments(runtime, "experiments", "experiment")

    @router.get("/experiments/{experiment_id}/results", summary="What came of an experiment so far")
    async def get_results(_: Reader, experiment_id: str) -> Response:
        return await answered(service.results(experiment_id))

    @router.post("/experiments/{experiment_id}/reopen", summary="Let an arm have requests again that was closed")
    async def reopen_arm(auth: Changer, experiment_id: str, request: Request) -> Response:
        return await answered(service.reopen(experiment_id, request, actor_of(auth)))

    for word in _SUMMARIES:
        _add_step(router, service, word)
    return router


def _add_step(router: APIRouter, service: "Experiments", word: str) -> None:
    @router.post(f"/experiments/{{experiment_id}}/{word}", summary=_SUMMARIES[word], name=f"{word}_experiment")
    async def step(auth: Changer, experiment_id: str, request: Request) -> Response:
        return await answered(service.step(experiment_id, word, request, actor_of(auth)))


@dataclass(frozen=True, slots=True)
class Experiments(Entries):
    """The experiments in force. Every method raises NotFound for one that is not there, BadField for what cannot be
    understood or done, and StoreError while the store does not answer."""

    async def step(self, name: str, word: str, request: Request, actor: str) -> Response:
        """Start, pause or stop an experiment: as if its entry were put with another status. An `If-Match` is kept to,
        and need not be sent, since no other field changes. Raises StaleEntry."""
        body = await json_body(request, optional=True)
        wanted = _Step.of(word, body)
        conditions = Conditions.of(request)
        now_ms = int(self.runtime.clock() * 1000)

        def propose() -> Change | None:
            entry, experiment = self._present(name), self._parsed(name)
            if conditions.match is not None or conditions.none_match:
                conditions.check(self._subject(name), entry)
            after = wanted.after(experiment, now_ms)
            before = _Standing(experiment.status, experiment.promote)
            if after == before:
                return None
            overlay = self.runtime.overlay.with_entry(self.section, name, _changed(entry, after))
            detail = json.dumps({"before": before.to_json(), "after": after.to_json()})
            return Change(overlay, f"experiment.{word}", self._subject(name), detail)

        await self._change(name, propose, actor)
        return self._answer(name, 200)

    async def reopen(self, name: str, request: Request, actor: str) -> dict[str, Any]:
        """Let an arm have requests again that a guardrail closed."""
        body = await json_body(request)
        _check_fields(body, "variant")
        await ready(self.runtime)
        variant = _variant(self._parsed(name), "variant", body.get("variant"))
        if not await experiments.reopen(self.runtime, self._store, name, variant, actor):
            raise BadField(f"variant: {variant!r} is not closed.")
        return {"id": name, "variant": variant, "reopened": True}

    async def results(self, name: str) -> dict[str, Any]:
        """What came of an experiment up to now. Raises NotInstalled."""
        await ready(self.runtime)
        experiment = self._parsed(name)
        assert self.runtime.ledger is not None
        await self.runtime.ledger.flush(within=_FRESH_SECONDS)
        now_ms = int(self.runtime.clock() * 1000)
        history = await history_of(self._store, experiment)
        periods = await periods_of(self._store, experiment, history, now_ms)
        try:
            found = await experiments.results_of(experiment, periods, now_ms)
        except StatisticsMissing as error:
            raise NotInstalled(f"{error}.") from None
        return _shown(experiment, history, found)

    # -- details ---------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> "Store":
        assert self.runtime.store is not None
        return self.runtime.store

    def _parsed(self, name: str) -> Experiment:
        for one in self.runtime.settings.routing.experiments:
            if one.id == name:
                return one
        raise self._missing(name)


@dataclass(frozen=True, slots=True)
class _Standing:
    """The fields of an entry that steps change."""

    status: ExperimentStatus
    promote: str | None = None

    def to_json(self) -> dict[str, str | None]:
        return {"status": self.status.value, "promote": self.promote}


@dataclass(frozen=True, slots=True)
class _Step:
    """What an administrator wants done with an experiment."""

    word: str
    again: bool = False
    body: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, word: str, body: Mapping[str, Any]) -> "_Step":
        """Raises BadField for a body that has no such fields."""
        _check_fields(body, *_FIELDS[word])
        again = body.get("again", False)
        if not isinstance(again, bool):
            raise BadField("again: must be true or false.")
        return cls(word, again, body)

    def after(self, experiment: Experiment, now_ms: int) -> _Standing:
        """How the experiment stands afterwards. Raises BadField for what cannot be done with it as it stands."""
        status = experiment.status
        if self.word == "stop":
            body = self.body or {}
            promote = experiment.promote
            if "promote" in body:
                given = body["promote"]
                promote = None if given is None else _variant(experiment, "promote", given)
            return _Standing(ExperimentStatus.STOPPED, promote)
        if self.word == "pause":
            if status not in (ExperimentStatus.RUNNING, ExperimentStatus.PAUSED):
                raise BadField(f"The experiment {experiment.id!r} is {_named(status)}; only one that runs is paused.")
            return _Standing(ExperimentStatus.PAUSED)
        if status is ExperimentStatus.STOPPED and not self.again:
            raise BadField(
                f"The experiment {experiment.id!r} was stopped. Started again it goes on with the same units, and its "
                'results with theirs: send {"again": true} for that, or put it with a new seed to begin anew.'
            )
        if experiment.end is not None and experiment.end.timestamp() * 1000 <= now_ms:
            raise BadField(f"The experiment {experiment.id!r} ended at {experiment.end.isoformat()}; put a later end.")
        return _Standing(ExperimentStatus.RUNNING)


_SUMMARIES = {
    "start": "Have units assigned to an experiment's variants",
    "pause": "Have no units assigned for a while; later the same come back to the same variants",
    "stop": "End an experiment, and have everybody get a variant where one is promoted",
}
_FIELDS: Mapping[str, tuple[str, ...]] = {"start": ("again",), "pause": (), "stop": ("promote",)}


def _named(status: ExperimentStatus) -> str:
    return "a draft" if status is ExperimentStatus.DRAFT else status.value


def _variant(experiment: Experiment, field: str, given: Any) -> str:
    ids = tuple(variant.id for variant in experiment.variants)
    if not isinstance(given, str) or given not in ids:
        hint = nearest(given, ids) if isinstance(given, str) else ""
        raise BadField(f"{field}: must be one of its variants{hint}.", details={"valid": ids})
    return given


def _check_fields(body: Mapping[str, Any], *valid: str) -> None:
    for name in body:
        if name not in valid:
            raise BadField(f"{shown_name(name)}: unknown field{nearest(name, valid)}", details={"valid": list(valid)})


def _changed(entry: Mapping[str, Any], standing: _Standing) -> dict[str, Any]:
    """An entry as it stands in a configuration, in another standing, as the overlay takes it."""
    changed = {name: value for name, value in entry.items() if name not in ("status", "promote")}
    changed["status"] = standing.status.value
    if standing.promote is not None:
        changed["promote"] = standing.promote
    return cast("dict[str, Any]", _as_json(changed))


def _as_json(value: Any) -> Any:
    """YAML has dates, JSON has none."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in cast("list[Any]", value)]
    return value.isoformat() if hasattr(value, "isoformat") else value


# -- results ---------------------------------------------------------------------------------------------------------


def _shown(experiment: Experiment, history: History, found: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether anything else holds comes first."""
    metrics = experiment.metrics
    return {
        "id": experiment.id,
        "messages": found["messages"],
        "split": {
            "mismatch": found["srm"],
            **{name: found["split"][name] for name in ("sure", "p_value", "always_valid")},
        },
        "status": experiment.status.value,
        "promote": experiment.promote,
        "at": found["at"],
        "began_at": None if history.began_ms is None else moment(history.began_ms),
        "unit": experiment.unit.value,
        "primary": metrics.primary,
        "method": metrics.method.value,
        "alpha": metrics.alpha,
        "correction": metrics.correction.value,
        "minimum_effect": metrics.minimum_effect,
        "weights_changed": history.weights_changed,
        "periods": found["periods"],
        "ranges_version": history.version,
        "variants": _variants(experiment, history, found["units"]),
        "comparisons": found["comparisons"],
    }


def _variants(experiment: Experiment, history: History, units: Mapping[str, int]) -> list[dict[str, Any]]:
    ranges, buckets = dict(history.ranges), buckets_of(history.ranges)
    shown: list[dict[str, Any]] = []
    for variant in experiment.variants:
        owned = ranges.get(variant.id, ())
        closure, reopened = history.closed.get(variant.id), history.reopened.get(variant.id)
        again_ms = None if reopened is None else reopened.reopened_ms
        shown.append(
            {
                "id": variant.id,
                "control": variant is experiment.variants[0],
                "model": variant.model,
                "units": units[variant.id],
                "share": buckets.get(variant.id, 0) / BUCKETS,
                "ranges": [[start, end] for start, end in owned],
                "closed": None if closure is None else {"since": moment(closure.time_ms), "reason": closure.reason},
                "reopened_at": None if again_ms is None else moment(again_ms),
            }
        )
    return shown

"""Active health checks: deployments that nobody asks are asked now and then, to find out that they are ill before a
client does, and that they are well again without one."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.breakers import IGNORED, OK, Permit, State, classify
from core.errors import JournalFull, StoreError
from core.ids import new_request_id
from core.money import nano_dollars
from core.pauses import in_step
from core.settings.models.operations import HealthChecks as Rules
from core.state.scripts import Scripts, StateAway
from core.usage import Attempt, UsageEvent, UsageState
from plugins.metrics import traffic

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.store import Store
    from plugins.resilience.breakers import DeploymentBreakers
    from plugins.routing.candidates import Candidates

_LOG = logging.getLogger("orchestration.health")
_LOOK_EVERY = 1.0
_JITTER = 0.2
_DAY = 86_400
_SOONER = 0.25
"""Of the interval, after a check that failed."""
_AT_ONCE = 4
USER = "health-checks"
"""Who is charged with them in the books."""

Entry = Mapping[str, Any]
"""A deployment of LiteLLM's `model_list`; Any because it has whatever the configuration has."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a check. Tokens are those of its usage; `error` is the name of what was raised, None where it was
    answered."""

    status: int
    error: str | None = None
    cause: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """The last check of a deployment; `at` is Unix seconds."""

    at: float
    ok: bool
    latency_ms: int
    status: int
    error: str | None


Ask = Callable[[Entry], Awaitable[Answered]]
Claim = Callable[[str, float], Awaitable[bool]]
"""Whether this instance is to check the deployment of this id, which no other then does for so many seconds."""


class HealthChecks:
    """Those of one worker.

    `deployments` lists LiteLLM's, `heard` says when one had traffic last (Unix seconds), `paid` writes down what a
    check used and returns what it cost in nano-dollars.
    """

    def __init__(
        self,
        breakers: "DeploymentBreakers",
        deployments: Callable[[], Iterable[Entry]],
        heard: Callable[[str], float | None],
        ask: Ask,
        claim: Claim,
        paid: Callable[[Entry, Answered, int], int],
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._breakers = breakers
        self._deployments = deployments
        self._heard = heard
        self._ask = ask
        self._claim = claim
        self._paid = paid
        self._clock = clock
        self._chance = chance
        self._next: dict[str, float] = {}
        """When a deployment is looked at again, by its id."""
        self._day = 0
        self._spent_nano = 0
        self._rules = Rules()
        self.last: dict[str, Checked] = {}

    def due(self, rules: Rules) -> list[Entry]:
        """The deployments to check now: those without traffic for an interval, each with a jitter of its own, as long
        as there is money for today."""
        now = self._clock()
        day = int(now // _DAY)
        if day != self._day:
            self._day, self._spent_nano = day, 0
        if rules.interval <= 0 or self._spent_nano >= nano_dollars(rules.daily_budget):
            return []
        found: list[Entry] = []
        known: set[str] = set()
        for one in self._deployments():
            name = (one.get("model_info") or {}).get("id")
            if name is None or _kind(one) is None:
                continue
            known.add(name)
            if name not in self._next:  # not all at once
                self._next[name] = now + rules.interval * self._chance()
            heard = self._heard(name)
            if heard is not None:
                self._next[name] = max(self._next[name], heard + rules.interval)
            if now >= self._next[name]:
                self._next[name] = now + rules.interval * (1 + _JITTER * (2 * self._chance() - 1))
                found.append(one)
        for gone in self._next.keys() - known:
            del self._next[gone]
            self.last.pop(gone, None)
        return found

    async def check(self, one: Entry, rules: Rules) -> None:
        """Ask a deployment, unless its breaker says that it is too early or another instance does it."""
        name: str = one["model_info"]["id"]
        self._rules = rules
        breaker = self._breakers.name_of(one) or name
        breakers = self._breakers.now
        if not breakers.allows(breaker):
            return
        state = self._breakers.states().get(breaker)
        if state is None or state.state is not State.HALF_OPEN:  # places for probes are shared as it is
            ill = name in self.last and not self.last[name].ok
            if not await self._claim(name, rules.interval * (_SOONER if ill else 1) * (1 - _JITTER)):
                return
        permit = await breakers.acquire(breaker)
        if permit is None:
            return
        started = self._clock()
        try:
            async with asyncio.timeout(rules.timeout):
                answered = await self._ask(one)
        except TimeoutError:
            answered = Answered(0, "Timeout")
        except BaseException:
            breakers.record(breaker, IGNORED, 0.0, permit)
            raise
        self._note(one, name, answered, self._clock() - started, permit)

    def _note(self, one: Entry, name: str, answered: Answered, seconds: float, permit: Permit) -> None:
        self._spent_nano += self._paid(one, answered, round(seconds * 1000))
        if answered.status and 400 <= answered.status < 500 and answered.status not in _ILL:
            outcome = OK  # it lives, and finds fault with the question
        else:
            outcome = classify(answered.status, answered.error, None, seconds, cause=answered.cause)
        self._breakers.now.record(permit.name, outcome, seconds, permit)
        ok = outcome is OK
        self.last[name] = Checked(self._clock(), ok, round(seconds * 1000), answered.status, answered.error)
        if not ok:
            # Failures that lie further apart than a breaker's window do not add up.
            self._next[name] = self._clock() + self._rules.interval * _SOONER
            _LOG.warning("health check of %s failed: %s", name, answered.error or f"status {answered.status}")

    async def look(self, rules: Rules) -> None:
        """Check what is due."""
        due = self.due(rules)
        due += [one for one in self._half_open() if one not in due]
        for start in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*(self.check(one, rules) for one in due[start : start + _AT_ONCE]))

    def _half_open(self) -> list[Entry]:
        """Deployments that wait for a probe, where nobody has asked for a second: a check spares a client the try."""
        waiting = {name for name, state in self._breakers.states().items() if state.state is State.HALF_OPEN}
        if not waiting:
            return []
        now = self._clock()
        return [
            one
            for one in self._deployments()
            if self._breakers.name_of(one) in waiting
            and _kind(one) is not None
            and now - (self._heard(one["model_info"]["id"]) or 0.0) > _LOOK_EVERY
        ]


_ILL = (401, 402, 403, 408, 429)


def _kind(one: Entry) -> str | None:
    """How a deployment can be asked cheaply, None where it cannot: pictures and speech cost as much as a request."""
    model = str((one.get("litellm_params") or {}).get("model") or "")
    mode = (one.get("model_info") or {}).get("mode") or "chat"
    if not model or "*" in model:
        return None
    return mode if mode in ("chat", "embedding") else None


async def ask(one: Entry) -> Answered:
    """One token, or the vector of a word, from a deployment. The callbacks put in its secrets."""
    import litellm

    params: dict[str, Any] = {
        name: value for name, value in (one.get("litellm_params") or {}).items() if name not in _OF_THE_ROUTER
    }
    group, info = one.get("model_name"), one.get("model_info") or {}
    params |= {
        "metadata": {"model_group": group, "deployment_model_name": group, "model_info": dict(info)},
        "model_info": dict(info),
        "no-log": True,
        "max_retries": 0,
    }
    try:
        if _kind(one) == "embedding":
            answer: Any = await litellm.aembedding(**(params | {"input": ["ping"]}))
        else:
            question = [{"role": "user", "content": "ping"}]
            answer = await litellm.acompletion(**(params | {"messages": question, "max_tokens": 1, "stream": False}))
    except Exception as error:
        cause = error.__cause__ or error.__context__
        status = getattr(error, "status_code", None)
        return Answered(
            status if isinstance(status, int) else 0,
            type(error).__name__,
            None if cause is None else type(cause).__name__,
        )
    usage = getattr(answer, "usage", None)
    return Answered(
        200,
        None,
        None,
        int(getattr(usage, "prompt_tokens", 0) or 0),
        int(getattr(usage, "completion_tokens", 0) or 0),
    )


_OF_THE_ROUTER = frozenset(
    (
        *(
            "tpm",
            "rpm",
            "weight",
            "order",
            "tags",
            "num_retries",
            "max_parallel_requests",
            "cooldown_time",
            "max_tokens",
        ),
        *("max_budget", "budget_duration", "default_api_key_tpm_limit", "default_api_key_rpm_limit", "stream"),
        *("use_in_pass_through", "use_litellm_proxy", "merge_reasoning_content_in_choices", "max_completion_tokens"),
    )
)


class Checking:
    """Health checks on the way through a worker's life: when they run, who does them, and where they are charged."""

    def __init__(
        self,
        runtime: "Runtime",
        breakers: "DeploymentBreakers",
        candidates: "Candidates",
        deployments: Callable[[], Iterable[Entry]],
    ) -> None:
        self._runtime = runtime
        self._candidates = candidates
        self._scripts: Scripts | None = None
        self.checks = HealthChecks(
            breakers, lambda: self._enabled(deployments()), breakers.heard.get, ask, self._claim, self._charge
        )

    def _enabled(self, deployments: Iterable[Entry]) -> Iterable[Entry]:
        disabled = self._runtime.disabled_deployments
        return [one for one in deployments if (one.get("model_info") or {}).get("id") not in disabled]

    async def run(self, _: "Store") -> None:
        """Check what is due, where the configuration asks for it, until cancelled: a check costs money."""
        if self._runtime.shared_url is not None:
            self._scripts = Scripts(self._runtime.shared_url, 2.0)
        try:
            while True:
                settings = self._runtime.settings.resilience
                if "health_checks" in settings.model_fields_set:
                    try:
                        await self.checks.look(settings.health_checks)
                    except (StateAway, StoreError) as error:
                        _LOG.warning("health checks wait: %s", error)
                    except Exception:  # a deployment that cannot even be asked must not end the checks of all others
                        _LOG.exception("a health check went wrong")
                await asyncio.sleep(in_step(_LOOK_EVERY))
        finally:
            if self._scripts is not None:
                await self._scripts.close()

    async def _claim(self, deployment: str, seconds: float) -> bool:
        if self._scripts is None:
            return True
        key = f"{{orchestration}}:health:{deployment}"
        try:
            return bool(await self._scripts.run("claim", [key], [self._runtime.instance, int(seconds * 1000)]))
        except StateAway:
            return False

    def _charge(self, one: Entry, answered: Answered, latency_ms: int) -> int:
        """A usage event of a user of its own. A check that failed is not charged: providers bill no errors."""
        group = str(one.get("model_name"))
        cost = self._candidates.of(group).cost_nano(answered.input_tokens, answered.output_tokens)
        nano = round(cost or 0)
        usage = UsageState.REPORTED if answered.error is None else UsageState.NONE
        now_ms = int(self._runtime.clock() * 1000)
        model = str((one.get("litellm_params") or {}).get("model"))
        attempt = Attempt(
            1,
            group,
            deployment=one["model_info"]["id"],
            provider=model.partition("/")[0],
            provider_model=model,
            started_ms=now_ms - latency_ms,
            latency_ms=latency_ms,
            status=answered.status,
            error_class=answered.error,
            usage=usage,
            input_tokens=answered.input_tokens,
            output_tokens=answered.output_tokens,
            cost_nano=nano,
        )
        event = UsageEvent(
            request_id=new_request_id(),
            time_ms=now_ms,
            endpoint="health",
            status=answered.status or 504,
            instance=self._runtime.instance,
            user_id=USER,
            asked_model=group,
            used_model=group,
            deployment=attempt.deployment,
            provider=attempt.provider,
            provider_model=model,
            input_tokens=answered.input_tokens,
            output_tokens=answered.output_tokens,
            usage=usage,
            cost_nano=nano,
            price_version=self._runtime.price_version,
            error_class=answered.error,
            latency_ms=latency_ms,
            attempts=[attempt],
        )
        try:
            self._runtime.journal.append(event)
        except JournalFull as error:
            _LOG.warning("a health check is not in the books: %s", error)
        traffic.attempted(event.attempts)
        return nano

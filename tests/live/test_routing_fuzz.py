"""No request is answered by a model that is forbidden to it: random settings, callers, failures and fallbacks, held
against a second opinion that shares no code with the first."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import pytest

from plugins import compat
from tests.support.gateway import KEYS, OURS, key_environment, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.routing import Asking, Deployment, RoutingDesk, deployment, key

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

WORLDS, REQUESTS = 250, 400
THROUGH_THE_PROXY = 1_000

GROUPS = tuple(f"g{number}" for number in range(8))
POLICIES = tuple(f"p{number}" for number in range(4))
PATTERNS = (*GROUPS, *GROUPS, "g*", "g[0-3]", "g[4-7]", "*", "p*")
TASKS = (None, "chat", "coding")
ORDERS = (
    ["experiments", "rules", "tiers", "priority", "cost"],
    ["rules", "experiments", "tiers", "priority", "cost"],
    ["tiers", "rules", "cost", "priority"],
    ["experiments", "tiers"],
    ["tiers"],
)
OBJECTIVES = ("priority", "cost", "latency", "balanced", "weighted", "least_busy", "round_robin")
CONDITIONS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "true": lambda _: True,
    "task_type == 'coding' && !stream": lambda about: about["task_type"] == "coding" and not about["stream"],
    "user_tier in ['t0', 't2'] || metadata.app == 'x'": (
        lambda about: about["tier"] in ("t0", "t2") or about["app"] == "x"
    ),
    "model.startsWith('p')": lambda about: about["model"].startswith("p"),
}
"""Conditions, and what they mean. The first is whatever, the others look at all that requests here differ in."""


class Second:
    """The second opinion: DESIGN's rules of permission, read off a configuration as it is written."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.tiers: Mapping[str, Any] = section.get("tiers", {})
        self.default_tier = section.get("default_tier")
        self.keys = {entry["user_id"]: entry for entry in section["keys"]}
        self.policies: Mapping[str, Any] = section["routing"]["policies"]
        self.order: Sequence[str] = section["routing"]["order"]
        self.first_only = section["routing"]["match"] == "first"
        in_order = sorted(section["routing"]["rules"], key=lambda rule: rule["priority"])
        self.rules = [rule for rule in in_order if rule["enabled"]] if "rules" in self.order else []
        self.experiments = section["routing"]["experiments"] if "experiments" in self.order else []

    def tiers_of(self, who: str, claimed: str | None, wish: str | None) -> tuple[str | None, list[str]]:
        """The tier that decides, by name, and all that must permit."""
        if not self.tiers:
            return None, []
        entry = self.keys[who]
        tier = entry.get("tier") or self.default_tier
        if entry.get("trusted") and claimed is not None and claimed in self.tiers:
            return claimed, [claimed]
        if wish is None or wish == tier or wish not in self.tiers:
            return tier, [] if tier is None else [tier]
        if tier is None:
            return wish, [wish]
        narrower = all(self.tier_permits(tier, group) for group in GROUPS if self.tier_permits(wish, group))
        return wish if narrower else tier, [tier, wish]

    def tier_permits(self, tier: str, group: str) -> bool:
        return any(fnmatchcase(group, pattern) for pattern in self.tiers[tier]["models"])

    def key_lists(self, who: str, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.keys[who]["models"])

    def followed(self, about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        found = [rule for rule in self.rules if CONDITIONS[rule["when"]](about)]
        return found[:1] if self.first_only else found

    def forbidden(self, group: str, who: str, tiers: Sequence[str], asked: str, about: Mapping[str, Any]) -> str | None:
        """Why a request must not be answered by a group, None where it may."""
        rules = self.followed(about)
        if any("deny" in rule for rule in rules):
            return "denied"
        if not all(self.tier_permits(tier, group) for tier in tiers):
            return "tier"
        if group != asked and not self.key_lists(who, group) and not self._granted(group, who, asked, rules):
            return "key"
        if any(fnmatchcase(group, pattern) for rule in rules for pattern in rule.get("exclude", ())):
            return "excluded"
        if not self._left_in(group, asked, rules) and not self._arm_before_rules(group, asked):
            return "not used"
        return None

    def only_as_an_arm(self, group: str, asked: str, about: Mapping[str, Any]) -> bool:
        """Whether only an experiment can bring a group in, which not every request is in."""
        return not self._left_in(group, asked, self.followed(about))

    def _left_in(self, group: str, asked: str, rules: Sequence[Mapping[str, Any]]) -> bool:
        uses = [rule["use"] for rule in rules if "use" in rule] if asked in self.policies else []
        return all(any(fnmatchcase(group, pattern) for pattern in use) for use in uses)

    def _granted(self, group: str, who: str, asked: str, rules: Sequence[Mapping[str, Any]]) -> bool:
        policy = self.policies.get(asked)
        if policy is None or not policy["grants"] or "*" in self.keys[who]["models"] or not self.key_lists(who, asked):
            return False
        brought = {pattern for rule in rules for pattern in rule.get("use", ())}
        return group in policy["candidates"] or group in brought or group in self._arms(asked)

    def _arms(self, policy: str) -> set[str]:
        running = [one for one in self.experiments if one["policy"] == policy and one["status"] != "paused"]
        return {arm["model"] for one in running for arm in one["variants"] if "model" in arm}

    def _arm_before_rules(self, group: str, policy: str) -> bool:
        if "experiments" not in self.order:
            return False
        first = "rules" not in self.order or self.order.index("experiments") < self.order.index("rules")
        return first and group in self._arms(policy)

    def out_of_region(self, one: Deployment, asked: str) -> bool:
        regions = self.policies.get(asked, {}).get("regions", ())
        return bool(regions) and one["model_info"].get("region") not in regions


def some(chance: random.Random, of: Sequence[str], most: int) -> list[str]:
    return chance.sample(list(dict.fromkeys(of)), chance.randint(1, most))


def a_world(chance: random.Random) -> tuple[dict[str, Any], dict[str, list[Deployment]]]:
    """An `orchestration:` section, and the deployments of each group."""
    names = [f"t{number}" for number in range(chance.choice((0, 1, 3, 4)))]
    tiers: dict[str, dict[str, Any]] = {name: {"models": some(chance, PATTERNS, 4)} for name in names}
    rules = [a_rule(chance, number) for number in range(chance.choice((0, 1, 3, 8)))]
    policies = {
        name: {
            "candidates": some(chance, GROUPS, 5),
            "grants": chance.random() < 0.4,
            "objective": chance.choice(OBJECTIVES),
            **({"regions": ["eu"]} if chance.random() < 0.25 else {}),
            **({"sticky": chance.choice(("user", "session"))} if chance.random() < 0.3 else {}),
        }
        for name in POLICIES
    }
    section: dict[str, Any] = {
        "tiers": tiers,
        "keys": [
            key(
                f"u{number}",
                models=chance.choice((["*"], some(chance, (*PATTERNS, *POLICIES), 5))),
                **({"tier": chance.choice(list(tiers))} if tiers and chance.random() < 0.7 else {}),
                trusted=chance.random() < 0.2,
            )
            for number in range(6)
        ],
        "routing": {
            "order": chance.choice(ORDERS[:1] * 3 + ORDERS),
            "match": chance.choice(("first", "all")),
            "policies": policies,
            "rules": rules,
            "experiments": [an_experiment(chance, number) for number in range(chance.choice((0, 1, 3)))],
        },
    }
    if tiers and chance.random() < 0.8:
        section["default_tier"] = chance.choice(list(tiers))
    for tier in tiers.values():
        if chance.random() < 0.3:
            tier["default_policy"] = chance.choice(POLICIES)
    deployments = {
        group: [
            deployment(group, str(number), **({} if region is None else {"region": region}))
            for number, region in enumerate(chance.choices((None, "eu", "us"), k=chance.randint(1, 3)))
        ]
        for group in GROUPS
    }
    return section, deployments


def a_rule(chance: random.Random, number: int) -> dict[str, Any]:
    actions: dict[str, Any] = {
        "use": some(chance, PATTERNS[:-2], 4),
        "prefer": some(chance, PATTERNS[:-2], 2),
        "exclude": some(chance, PATTERNS[:-3], 2),
        "set": {"temperature": 0},
    }
    taken = chance.sample(list(actions), chance.choice((1, 1, 2)))
    if chance.random() < 0.05:
        actions["deny"], taken = "no", ["deny"]
    return {
        "id": f"r{number}",
        "when": chance.choice(list(CONDITIONS)),
        "priority": chance.randint(1, 5),
        "enabled": chance.random() < 0.9,
        **{action: actions[action] for action in taken},
    }


def an_experiment(chance: random.Random, number: int) -> dict[str, Any]:
    arms: list[dict[str, Any]] = [{"id": name, "weight": chance.randint(1, 9)} for name in ("a", "b", "c")]
    for arm in arms:
        if chance.random() < 0.8:
            arm["model"] = chance.choice(GROUPS)
    status = chance.choice(("running", "running", "running", "draft", "paused", "stopped"))
    return {
        "id": f"e{number}",
        "policy": chance.choice(POLICIES),
        "variants": arms[: chance.choice((2, 3))],
        "unit": chance.choice(("user", "key", "session")),
        "traffic": chance.choice((0.5, 1)),
        "status": status,
        **({"forced": {"u0": "b"}} if chance.random() < 0.2 else {}),
        **({"promote": "a"} if status == "stopped" else {}),
    }


class Round:
    """One world and its requests. `saw` counts what happened, so that a fuzz in which nothing does is noticed."""

    def __init__(self, seed: int, saw: Counter[str]) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.saw = saw
        self.section, self.deployments = a_world(self.chance)
        self.second = Second(self.section)
        self.of_id = {one["model_info"]["id"]: one for group in self.deployments.values() for one in group}

    async def run(self, requests: int) -> None:
        with RoutingDesk(self.section, self.deployments, version=self.seed) as desk:
            identities = {who: desk.identity(who) for who in self.second.keys}
            for _ in range(requests):
                await self.request(desk, identities)

    async def request(self, desk: RoutingDesk, identities: Mapping[str, Any]) -> None:
        chance, second = self.chance, self.second
        who = chance.choice(list(identities))
        auth = identities[who]
        wish = chance.choice((None, None, None, "t0", "t1", "t9"))
        if wish is not None:
            auth = auth.model_copy(update={"metadata": {"tier": wish}})
        claimed = chance.choice((None, None, "t0", "t1"))
        tier, tiers = second.tiers_of(who, claimed, wish)
        if claimed is not None and claimed not in second.tiers:
            claimed = None
        named = chance.choice((*POLICIES, *POLICIES, *GROUPS, None))
        if named is not None and not await compat.may_call(auth, named):
            self.saw["refused by LiteLLM"] += 1  # its authentication comes before us
            return
        asked = named or (second.tiers[tier].get("default_policy") if tier else None)
        if asked is None:
            return
        about = {"task_type": chance.choice(TASKS), "stream": chance.random() < 0.3, "tier": tier, "model": asked}
        about["app"] = chance.choice((None, "x", "y"))
        metadata = {name: about[name] for name in ("task_type", "app") if about[name] is not None}
        headers = {"x-user-tier": claimed} if claimed is not None else {}
        data: dict[str, Any] = {"stream": about["stream"], "metadata": metadata}
        if named is not None:
            data["model"] = named
        if chance.random() < 0.2:
            data["fallbacks"] = chance.choice(([chance.choice(GROUPS)], [{"model": chance.choice(GROUPS)}], ["?"], []))
        desk.runtime.disabled_deployments = frozenset(chance.sample(list(self.of_id), chance.choice((0, 0, 2))))
        asking = await desk.ask(auth, data, headers=headers | {"x-session-id": str(chance.randint(1, 50))})
        why = {group: second.forbidden(group, who, tiers, asked, about) for group in GROUPS}
        if asking.status != 200:
            self.refused(asking, asked, about, why, data)
            return
        self.saw["admitted"] += 1
        async for group, ids in self.attempts(asking):
            for one in ids:
                told = f"seed {self.seed}: {who} of {tiers} asked {asked} with {about}, got {one}"
                assert why[group] is None, f"{told}: {why[group]}"
                assert not second.out_of_region(self.of_id[one], asked), f"{told}: region"
                assert one not in desk.runtime.disabled_deployments, f"{told}: disabled"
            self.saw["attempts at a permitted group" if ids else "attempts at one that is closed"] += 1
            if ids and chance.random() < 0.3:
                return

    async def attempts(self, asking: Asking) -> AsyncIterator[tuple[str, list[str]]]:
        """What LiteLLM tries: the model, the ranked list, and then all that fallbacks of its own could ever name."""
        for group in (*asking.ranked, *self.chance.sample(GROUPS, len(GROUPS))):
            if group in self.deployments:
                yield group, await asking.deployments(group)

    def refused(
        self, asking: Asking, asked: str, about: Mapping[str, Any], why: Mapping[str, str | None], data: dict[str, Any]
    ) -> None:
        """A refusal is right where nothing of what was asked for may be used, or the client named a fallback that is
        forbidden."""
        self.saw[f"refused with {asking.status}"] += 1
        policy = self.second.policies.get(asked)
        if policy is None and data.get("fallbacks"):
            return
        names = [asked] if policy is None else list(policy["candidates"])
        usable = [
            name
            for name in names
            if why[name] is None
            and not self.second.only_as_an_arm(name, asked, about)
            and not all(self.second.out_of_region(one, asked) for one in self.deployments.get(name, ()))
        ]
        assert usable == [], (
            f"seed {self.seed}: {asked} with {about} was refused ({asking.refusal}); {usable} may serve"
        )


async def test_no_request_of_a_hundred_thousand_comes_to_a_forbidden_model():
    saw = Counter[str]()
    for seed in range(WORLDS):
        await Round(seed, saw).run(REQUESTS)
    assert sum(saw[name] for name in saw if "attempts" not in name) > 0.9 * WORLDS * REQUESTS, saw
    assert saw["admitted"] > 20_000 and saw["refused with 403"] > 5_000, saw
    assert saw["attempts at a permitted group"] > 40_000 and saw["attempts at one that is closed"] > 40_000, saw


# -- through a proxy ---------------------------------------------------------------------------------------------------

CHAIN = ("one", "two", "three", "four", "five", "six")
WHO = {"ada": ("one", "two", "three", "four", "five", "six"), "bob": ("one", "two"), "carl": ("three", "four", "one")}
"""Who may use what, whether by tier (bob) or by key (carl)."""


@pytest.fixture(scope="module")
def failing() -> Iterator[tuple[ProxyProcess, FakeProvider]]:
    """A proxy whose own fallbacks lead everywhere, and models that fail more often than not."""
    with ExitStack() as stack:
        provider = stack.enter_context(FakeProvider())
        everywhere = [{name: [other for other in CHAIN if other != name]} for name in CHAIN]
        config = {
            **OURS,
            "model_list": [model(name, provider.url) for name in CHAIN],
            "router_settings": {
                "num_retries": 0,
                "disable_cooldowns": True,
                "fallbacks": everywhere,
                "context_window_fallbacks": everywhere,
                "content_policy_fallbacks": everywhere,
            },
            "orchestration": {
                "resilience": {
                    "circuit_breaker": {"failure_threshold": 1_000_000, "failure_ratio": None},
                    "retries": {"max_attempts": 1},
                },
                "keys": [
                    {"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "all"},
                    {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "few"},
                    {
                        "key": "os.environ/KEY_CARL",
                        "user_id": "carl",
                        "tier": "all",
                        "models": [*WHO["carl"], "any", "odd"],
                    },
                ],
                "tiers": {"all": {"models": ["*"]}, "few": {"models": list(WHO["bob"])}},
                "routing": {
                    "match": "all",
                    "policies": {
                        "any": {"candidates": CHAIN, "objective": "weighted"},
                        "odd": {"candidates": ["five", "three", "one"], "objective": "round_robin"},
                    },
                    "rules": [
                        {"id": "no-one", "when": "metadata.app == 'careful'", "exclude": ["one", "six"]},
                        {"id": "prefer", "when": "stream", "prefer": ["four", "two"]},
                        {"id": "only", "when": "task_type == 'narrow'", "use": ["t*", "one"]},
                    ],
                    "experiments": [
                        {
                            "id": "trial",
                            "policy": "any",
                            "unit": "session",
                            "status": "running",
                            "variants": [{"id": "a", "model": "two"}, {"id": "b", "model": "six"}],
                        }
                    ],
                },
            },
        }
        yield stack.enter_context(ProxyProcess(config, env=key_environment())), provider


def test_nor_does_one_of_a_thousand_through_a_proxy_whose_fallbacks_lead_everywhere(
    failing: tuple[ProxyProcess, FakeProvider],
):
    proxy, provider = failing
    for number, name in enumerate(CHAIN):
        provider.script(model=name, failure_rate=0.7, failure_status=(500, 429, 400, 503, 500, 408)[number])
    chance = random.Random(7)
    asked: dict[str, tuple[str, str, bool, bool]] = {}
    statuses = Counter[int]()

    def ask(number: int, who: str, name: str, careful: bool, narrow: bool, stream: bool, fallbacks: Any) -> int:
        metadata = {**({"app": "careful"} if careful else {}), **({"task_type": "narrow"} if narrow else {})}
        body = {"model": name, "messages": [{"role": "user", "content": f"number {number}"}], "metadata": metadata}
        body |= {"stream": stream, "session_id": f"s{number % 40}", **fallbacks}
        with proxy.client(KEYS[who]) as client:
            answer = client.post("/v1/chat/completions", json=body, headers={"x-session-id": f"s{number % 40}"})
        return answer.status_code

    with ThreadPoolExecutor(8) as threads:
        waiting: list[Any] = []
        for number in range(THROUGH_THE_PROXY):
            who, name = chance.choice(list(WHO)), chance.choice(("any", "any", "any", "odd", *CHAIN))
            careful, narrow, stream = (chance.random() < 0.3 for _ in range(3))
            fallbacks = {"fallbacks": chance.sample(CHAIN, 2)} if chance.random() < 0.2 else {}
            asked[f"number {number}"] = who, name, careful, narrow
            waiting.append(threads.submit(ask, number, who, name, careful, narrow, stream, fallbacks))
        statuses.update(one.result() for one in waiting)

    served = Counter[tuple[str, str]]()
    for attempt in provider.attempts:
        who, name, careful, narrow = asked[attempt.body["messages"][-1]["content"]]
        told = f"{who} asked {name} ({careful=}, {narrow=}) and {attempt.model} was called"
        assert attempt.model in WHO[who], told
        assert not (careful and attempt.model in ("one", "six")), told
        arm = name == "any" and attempt.model in ("two", "six")
        assert not (narrow and name in ("any", "odd")) or attempt.model in ("one", "two", "three") or arm, told
        served[who, attempt.model] += 1
    assert statuses[200] > 300 and statuses[403] > 50, statuses
    assert set(served) == {(who, name) for who, names in WHO.items() for name in names}, served

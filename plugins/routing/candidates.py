"""What routing has to know of the model groups that LiteLLM's router has: abilities, prices, regions."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from core.context import Need
from custom_router.candidates import Candidate
from plugins.budgets.price_fields import STANDARD
from plugins.budgets.price_list import published
from plugins.budgets.prices import GroupPrices, group_prices
from plugins.budgets.rates import ATTO_PER_NANO

_FOR = 30.0
_APART = 15.0
_MOST = 1000
_NAMED_PRIORITIES = {"high": 1, "medium": 2, "low": 3}

Entry = Mapping[str, Any]
"""A deployment of LiteLLM's `model_list`; Any because it has whatever the configuration has."""


class Candidates:
    """The candidates by name, each remembered for half a minute: LiteLLM may learn of models and prices at any time."""

    def __init__(
        self,
        deployments_of: Callable[[str], Sequence[Entry]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if deployments_of is None:
            from plugins import compat  # commands that need no proxy come by here too

            deployments_of = compat.deployments_of
        self._deployments_of = deployments_of
        self._clock = clock
        self._known: dict[str, tuple[float, Candidate]] = {}

    def of(self, name: str) -> Candidate:
        """A group, or a name that nothing is known about: such a one lacks nothing."""
        now = self._clock()
        known = self._known.get(name)
        if known is not None and known[0] > now:
            return known[1]
        candidate = candidate_of(name, self._deployments_of(name))
        if len(self._known) >= _MOST:
            self._known.clear()
        # Not all at once: looking one up takes a millisecond.
        self._known[name] = (now + _FOR + _APART * (len(self._known) % 8) / 8, candidate)
        return candidate

    def deployments(self, name: str) -> tuple[str, ...]:
        """The ids of a group's deployments."""
        return self.of(name).deployments

    def forget(self) -> None:
        """Look everything up again: LiteLLM's models have changed."""
        self._known.clear()


def candidate_of(name: str, deployments: Sequence[Entry]) -> Candidate:
    """A group from its deployments: it can do what each of them can, and costs what the dearest does."""
    if not deployments:
        return Candidate(name)
    import litellm

    price_map = cast("Mapping[str, Mapping[str, Any]]", litellm.model_cost)
    entries = [_entry(deployment, price_map) for deployment in deployments]
    about = [
        {**entry, **{field: value for field, value in _info(deployment).items() if value is not None}}
        for entry, deployment in zip(entries, deployments, strict=True)
    ]
    prices = group_prices(deployments)
    rate = prices.rate(STANDARD, 0) if prices.by("input") else None
    return Candidate(
        name,
        priority=min((known for one in about if (known := _priority(one.get("priority"))) is not None), default=None),
        weight=sum(_weight(_params(deployment).get("weight")) for deployment in deployments),
        regions=frozenset(region for deployment in deployments for region in regions_of(deployment)),
        context_window=min(_numbers(one.get("max_input_tokens") for one in about if _converses(one)), default=None),
        max_output=min(_numbers(one.get("max_output_tokens") for one in about), default=None),
        lacks=frozenset(need for entry, one in zip(entries, about, strict=True) for need in _lacks(entry, one)),
        input_nano=None if rate is None else rate.input / ATTO_PER_NANO,
        output_nano=None if rate is None or not _output_priced(prices, about) else rate.output / ATTO_PER_NANO,
        deployments=tuple(str(known) for d in deployments if (known := _info(d).get("id")) is not None),
    )


def _params(deployment: Entry) -> Mapping[str, Any]:
    return deployment.get("litellm_params") or {}


def _info(deployment: Entry) -> Mapping[str, Any]:
    return deployment.get("model_info") or {}


def _entry(deployment: Entry, price_map: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What LiteLLM's map says about a deployment's model."""
    params = _params(deployment)
    return published(str(params.get("model") or ""), params, _info(deployment), price_map)[0]


def _converses(about: Mapping[str, Any]) -> bool:
    """Whether the window is one of all the input: embeddings take many texts, each of which has to fit."""
    return about.get("mode") in (None, "chat", "completion", "responses")


def _output_priced(prices: GroupPrices, about: Sequence[Mapping[str, Any]]) -> bool:
    """Embeddings have no output to pay for."""
    return prices.by("output") or all(one.get("mode") == "embedding" for one in about)


def _priority(value: Any) -> int | None:
    """1 (first) to 10, also by name. None for what is neither."""
    if isinstance(value, str):
        value = _NAMED_PRIORITIES.get(value.lower(), int(value) if value.isdecimal() else None)
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10 else None


def _weight(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else 1.0


def _numbers(values: Iterable[Any]) -> list[int]:
    return [int(value) for value in values if isinstance(value, int | float) and value > 0]


_FLAGS = {
    Need.IMAGES: "supports_vision",
    Need.AUDIO: "supports_audio_input",
    Need.TOOLS: "supports_function_calling",
}
_OFTEN_LEFT_OUT = {Need.DOCUMENTS: "supports_pdf_input", Need.JSON: "supports_response_schema"}
"""LiteLLM's map does not say this of many models that can do it, so that only a plain no counts."""


def _lacks(entry: Mapping[str, Any], about: Mapping[str, Any]) -> list[Need]:
    """What a model is known not to serve. An entry that claims no ability at all says nothing about any; what the
    configuration says of the model is in `about` alone and counts for what it says."""
    tells = any(value is True and name.startswith("supports_") for name, value in entry.items())
    lacking = [need for need, flag in _FLAGS.items() if about.get(flag, not tells) in (False, None)]
    for need, flag in _OFTEN_LEFT_OUT.items():
        # What takes no pictures takes no scanned pages either.
        unseen = need is Need.DOCUMENTS and tells and flag not in about and Need.IMAGES in lacking
        if about.get(flag) is False or unseen:
            lacking.append(need)
    return lacking


# -- regions -----------------------------------------------------------------------------------------------------------

_PLACES = ("region_name", "aws_region_name", "vertex_location", "watsonx_region_name")
_OUTSIDE_THE_UNION = frozenset(
    {"eu-west-2", "eu-central-2", "europe-west2", "europe-west6", "eu-gb"}  # London and Zurich
)
_OF_THE_UNION = frozenset(
    {
        *("westeurope", "northeurope", "francecentral", "francesouth", "germanywestcentral", "germanynorth"),
        *("swedencentral", "swedensouth", "polandcentral", "italynorth", "spaincentral", "austriaeast"),
        *("belgiumcentral", "denmarkeast", "finlandcentral", "greececentral"),
    }
)
_OF_THE_STATES = frozenset(
    {
        *("eastus", "eastus2", "westus", "westus2", "westus3", "centralus", "northcentralus", "southcentralus"),
        *("westcentralus",),
    }
)


def regions_of(deployment: Entry) -> frozenset[str]:
    """Where a deployment is, as it is written and in lower case: what `model_info.region` says (one or a list), else
    what its provider's fields say. Regions of AWS, Azure and Google Cloud that lie in the United States or in the
    European Union are in `us` or `eu` as well.
    """
    named: object = _info(deployment).get("region")
    if named:
        listed = cast("list[object]", named) if isinstance(named, list) else [named]
        written = {str(one) for one in listed}
        return frozenset(written | {one.lower() for one in written})
    params = _params(deployment)
    written = {str(value) for name in _PLACES if (value := params.get(name))}
    found = written | {one.lower() for one in written}
    return frozenset(found | {part for region in found if (part := _part_of_world(region)) is not None})


def _part_of_world(region: str) -> str | None:
    if region in _OF_THE_UNION or (region.startswith(("eu-", "europe-")) and region not in _OUTSIDE_THE_UNION):
        return "eu"
    return "us" if region in _OF_THE_STATES or region.startswith("us-") else None


def deployments_in(regions: Iterable[str], deployments: Sequence[Any]) -> list[Any]:
    """Those of LiteLLM's deployments that are in one of `regions`; one that says no region is in none."""
    wanted = {region.lower() for region in regions}
    return [one for one in deployments if not wanted.isdisjoint(regions_of(one))]

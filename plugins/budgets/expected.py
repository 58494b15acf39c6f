"""How long answers really are, learned by model and task, to set limits that hardly any of them reaches."""

import math
from dataclasses import dataclass, field

_RATIO = 1.02
_LOG_RATIO = math.log(_RATIO)
_ENOUGH = 20
_MEMORY = 4096
"""Answers after which the older half counts half: models and habits change."""
_MOST_TASKS = 2048
_ANY = ""


@dataclass(slots=True)
class _Lengths:
    """A histogram whose buckets grow by 2 %."""

    counts: dict[int, float] = field(default_factory=dict[int, float])
    total: float = 0.0
    median: int | None = None
    """As it was some answers ago; worked out again after each tenth of them."""
    until: float = 0.0

    def add(self, tokens: int) -> None:
        bucket = math.ceil(math.log(max(tokens, 1)) / _LOG_RATIO)
        self.counts[bucket] = self.counts.get(bucket, 0.0) + 1
        self.total += 1
        if self.total >= self.until:
            self.median = None
        if self.total >= _MEMORY:
            self.counts = {one: count / 2 for one, count in self.counts.items() if count > 0.25}
            self.total = sum(self.counts.values())
            self.median = None

    def middle(self) -> int:
        """About the median."""
        if self.median is None:
            self.median, self.until = round(self.quantile(0.5)), self.total * 1.1
        return self.median

    def quantile(self, share: float) -> float:
        """The upper end of the bucket in which the next answer's quantile lies, counting it among those seen."""
        rank = share * (self.total + 1)
        below = 0.0
        bucket = 0
        for bucket in sorted(self.counts):
            below += self.counts[bucket]
            if below >= rank:
                break
        return _RATIO**bucket


class ExpectedOutput:
    """Output tokens of one answer: `limit` is a length that a share of `quantile` of all answers does not exceed.

    It stays some way above what was seen, the more the less that is and the more lengths differ: by a quarter of the
    way from the median to the quantile after 100 answers, by a fortieth after 10,000. With fewer than 20 of a task,
    those of the model count; without these, `initial`.
    """

    def __init__(self, quantile: float, initial: int) -> None:
        self.share = quantile
        self.initial = initial
        self._lengths: dict[tuple[str, str], _Lengths] = {}

    def saw(self, model: str, task_type: str | None, tokens: int, *, cut: bool = False) -> None:
        """An answer was this long. One that was cut by our limit would have been longer: it counts as twice that."""
        if tokens <= 0:
            return
        for task in {task_type or _ANY, _ANY}:
            lengths = self._lengths.get((model, task))
            if lengths is None:
                if len(self._lengths) >= _MOST_TASKS and task != _ANY:
                    continue  # task types come from requests; the model's own answers still count
                lengths = self._lengths[model, task] = _Lengths()
            lengths.add(tokens * 2 if cut else tokens)

    def typical(self, model: str, task_type: str | None) -> int:
        """Tokens that an answer has, more or less: the median of the task, else of the model. Where there are too few,
        an eighth of `initial`."""
        lengths = self._lengths.get((model, task_type or _ANY))
        if lengths is None or lengths.total < _ENOUGH:
            lengths = self._lengths.get((model, _ANY))
            if lengths is None or lengths.total < _ENOUGH:
                return self.initial // 8 or 1
        return lengths.middle()

    def limit(self, model: str, task_type: str | None) -> int:
        """Tokens; see the class."""
        for task in (task_type or _ANY, _ANY):
            lengths = self._lengths.get((model, task))
            if lengths is not None and lengths.total >= _ENOUGH:
                high = lengths.quantile(self.share)
                room = (high - lengths.quantile(0.5)) * 2.5 / math.sqrt(lengths.total)
                return math.ceil(high * _RATIO + room)
        return self.initial

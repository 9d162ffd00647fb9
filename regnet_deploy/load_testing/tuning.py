"""Which setting of the server bears the highest rate under a limit of latency, found by trying.

One thing after another, each beside the best of what went before: runtime and variant, executors and threads, batch,
delay. A setting that does not bear nine tenths of the best rate known is left after two looks. What was found so far is
partly luck, for a machine is never quiet: the best two and the simplest of those near them are measured again in turns,
until each has a rate that passes in four of five trials. Of these the simplest is taken, the one that was tried first,
unless it loses clearly.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from regnet_deploy.errors import RegnetDeployError, ServerError, UsageError
from regnet_deploy.load_testing.rate_search import find_rate
from regnet_deploy.load_testing.settings import ServerSetting

#: A setting is measured closely where it bears this share of the best rate known.
_WORTH = 0.9
#: A setting is better where it bears this much more: more than the search is exact to. It loses clearly where it bears
#: less than the first share of the best, and the simplest one is measured again where it bears the second.
_BETTER, _CLEAR, _NEAR = 1.06, 1 / 1.1, 1 / 1.25
#: First rate tried, of a capacity, and the lowest, of the first.
_FIRST, _LEAST = 0.6, 0.03
#: How often the best setting is measured again before one that bears less is left.
_DOUBTS = 2
#: Settings that are measured again, beside the simplest one.
_FINALISTS = 2
#: Trials that confirm a rate, and how many must pass; what it is lowered by where they do not, each time by one power
#: more; and how often.
_ROUNDS, _ENOUGH, _LOWER, _ATTEMPTS = 5, 4, 0.93, 8
_MOST_BATCH = 32


@dataclass(frozen=True)
class LoadTrial:
    """One load on one setting.

    Attributes:
        rate: images/s that were offered.
        achieved: images/s that were answered rightly.
        p99_ms: of the latencies; infinite where nothing was answered.
        bad: requests that were not answered rightly.
    """

    rate: float
    achieved: float
    p99_ms: float
    bad: int

    def keeps(self, limit_ms: float) -> bool:
        """Tell whether it kept to the limit, without a failure and without falling behind."""
        return self.p99_ms <= limit_ms and not self.bad


class MeasuredServer(Protocol):
    """A running server with one setting."""

    def capacity(self) -> float:
        """Return the images/s of a short closed loop."""
        ...

    def measure(self, rate: float) -> LoadTrial:
        """Offer a rate in an open loop."""
        ...


#: Starts a server with a setting; raises RegnetDeployError where it does not start.
Start = Callable[[ServerSetting], contextlib.AbstractContextManager[MeasuredServer]]


@dataclass(frozen=True)
class TuningRow:
    """What came of a setting.

    Attributes:
        setting: that was tried.
        rate: highest images/s that kept to the limit; 0 where none did.
        p99_ms: at that rate, or the lowest seen; None where it did not start.
        trials: loads that it took.
        note: why it was left, or what it was taken for.
    """

    setting: ServerSetting
    rate: float
    p99_ms: float | None
    trials: int
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {**asdict(self), "setting": self.setting.to_json()}


@dataclass(frozen=True)
class TuningOptions:
    """What there is to choose from; the first of each is what the others are compared with.

    Attributes:
        pairs: runtime and variant.
        layouts: executors and threads.
        batches: most images of an inference, up to this.
        delays_ms: in the order in which they are tried, each if the one before was better.
    """

    pairs: Sequence[tuple[str, str]]
    layouts: Sequence[tuple[int, int]]
    most_batch: int = _MOST_BATCH
    delays_ms: Sequence[float] = (1.0, 2.0, 5.0)


def tune(
    start: Start,
    choices: TuningOptions,
    limit_ms: float,
    tell: Callable[[str, TuningRow | None], None] = lambda what, row: None,
) -> tuple[TuningRow, list[TuningRow]]:
    """Find the setting with the highest rate whose p99 keeps to a limit.

    Args:
        start: starts a server.
        choices: what there is to choose from.
        limit_ms: of the 99th percentile of latency.
        tell: is told what is tried next, and each row when it is known.

    Returns:
        The winner with its confirmed rate, and a row for every setting that was tried.

    Raises:
        UsageError: no setting keeps to the limit; the message has the best p99 that was found.
        ServerError: no server starts.
    """
    search = _Search(start, limit_ms, tell)
    first = choices.layouts[0]
    for runtime, variant in choices.pairs:
        search.look(ServerSetting(runtime, variant, *first), "runtime and variant")
    # Another division of the cores may suit the second best runtime better: OpenVINO, say, is fond of single threads.
    for best in search.ranking()[:2]:
        if best.rate >= _WORTH * search.best_rate:
            for executors, threads in choices.layouts[1:]:
                setting = replace(best.setting, executors=executors, threads=threads)
                search.look(setting, "executors x threads")
    if search.best_rate:
        _climb_batches(search, choices.most_batch)
        _climb_delays(search, [delay for delay in choices.delays_ms if delay <= limit_ms / 2])
    return search.confirmed(), list(search.rows.values())


def _climb_batches(search: _Search, most: int) -> None:
    """Double the batch for as long as that is better, or else halve it."""
    for factor in (2.0, 0.5):
        before = batch = search.ranking()[0].setting.batch
        while 1 <= int(batch * factor) <= most:
            batch = int(batch * factor)
            if not search.look(replace(search.ranking()[0].setting, batch=batch), "batch"):
                break
        if search.ranking()[0].setting.batch != before:
            return


def _climb_delays(search: _Search, delays: Sequence[float]) -> None:
    for delay in delays:
        best = search.ranking()[0].setting
        if best.batch == 1 or not search.look(replace(best, max_delay_ms=delay), "delay"):
            return


class _Search:
    """What is known so far."""

    def __init__(self, start: Start, limit_ms: float, tell: Callable[[str, TuningRow | None], None]) -> None:
        self.rows: dict[ServerSetting, TuningRow] = {}
        self._start = start
        self._limit_ms = limit_ms
        self._tell = tell

    @property
    def best_rate(self) -> float:
        return max((row.rate for row in self.rows.values()), default=0.0)

    def ranking(self) -> list[TuningRow]:
        """Return the rows, the highest rate first; of equals the one that was there first."""
        return sorted(self.rows.values(), key=lambda row: -row.rate)

    def look(self, setting: ServerSetting, stage: str) -> bool:
        """Try a setting and tell whether it is better than what was known."""
        if setting in self.rows:
            return False
        self._tell(f"{stage}: {setting}", None)
        try:
            with self._start(setting) as candidate:
                row = self._explore(setting, candidate)
        except RegnetDeployError as error:
            row = TuningRow(setting, 0.0, None, 0, " ".join(str(error).split()))
        best = self.best_rate
        self.rows[setting] = row
        self._tell(f"{stage}: {setting}", row)
        return row.rate > _BETTER * best

    def _explore(self, setting: ServerSetting, candidate: MeasuredServer) -> TuningRow:
        trials: list[LoadTrial] = []
        for doubts in range(_DOUBTS + 1):
            gate = _WORTH * self.best_rate
            # A burst of other work on the machine must not be what a setting is left for: the best one so far is asked
            # whether it bears as much now.
            if not gate or self._passes(candidate, gate, trials):
                break
            if doubts == _DOUBTS or not self._lower_best():
                lowest = min(trial.p99_ms for trial in trials)
                return TuningRow(setting, 0.0, _finite(lowest), len(trials), f"does not bear {gate:.1f} images/s")
        rate, p99_ms = self._highest(candidate, self.best_rate or _FIRST * candidate.capacity(), trials)
        note = "" if rate else f"does not keep to {self._limit_ms:g} ms"
        return TuningRow(setting, rate, p99_ms, len(trials), note)

    def _lower_best(self) -> bool:
        """Measure the best setting again; where it does not bear now what it bore, lower its rate and return True."""
        best = self.ranking()[0]
        trials: list[LoadTrial] = []
        with self._start(best.setting) as control:
            if self._passes(control, _WORTH * best.rate, trials):
                return False
            rate, p99_ms = self._highest(control, best.rate / 2, trials)
        trials_taken = best.trials + len(trials)
        self.rows[best.setting] = replace(best, rate=rate, p99_ms=p99_ms, trials=trials_taken, note="bore more before")
        return True

    def _passes(self, candidate: MeasuredServer, rate: float, trials: list[LoadTrial]) -> bool:
        """Try a rate, and once more where it failed: what is taken in the end is confirmed."""
        for _ in range(2):
            trials.append(candidate.measure(rate))
            if trials[-1].keeps(self._limit_ms):
                return True
        return False

    def _highest(self, candidate: MeasuredServer, start: float, trials: list[LoadTrial]) -> tuple[float, float | None]:
        """Return the highest rate that keeps to the limit, or 0, and its p99, or the lowest seen."""
        least = max(0.5, _LEAST * start)
        find_rate(lambda rate: self._passes(candidate, rate, trials), start, least=least)
        kept = [trial for trial in trials if trial.keeps(self._limit_ms)]
        if not kept:
            return 0.0, _finite(min(trial.p99_ms for trial in trials))
        highest = max(kept, key=lambda trial: trial.rate)
        return highest.rate, highest.p99_ms

    def confirmed(self) -> TuningRow:
        """Measure the finalists again in turns; return the simplest of those that no other one beats clearly.

        Its rate is one that passes in four of five trials.
        """
        rates = {row.setting: row.rate for row in self.rows.values() if row.rate}  # the simplest first
        if not rates:
            raise self._nothing()
        running: dict[ServerSetting, tuple[contextlib.ExitStack, MeasuredServer]] = {}
        finalists: set[ServerSetting] = set()
        done: dict[ServerSetting, tuple[float, float]] = {}  # rate and p99
        lowest = math.inf
        with contextlib.ExitStack() as stack:
            for attempt in range(1, _ATTEMPTS + 1):
                turns = self._gather(stack, running, finalists, rates, done)
                if not turns:
                    break
                for one, trials in self._rounds(running, turns, rates).items():
                    if sum(trial.keeps(self._limit_ms) for trial in trials) >= _ENOUGH:
                        done[one] = (rates[one], statistics.median(trial.p99_ms for trial in trials))
                    else:
                        rates[one] *= _LOWER**attempt
                        lowest = min([lowest, *(trial.p99_ms for trial in trials)])
        if not done:
            raise UsageError(
                f"no setting kept to a p99 of {self._limit_ms:g} ms when it was measured again, {lowest:.1f} ms was "
                "the lowest: other work disturbs this machine; nothing was written, run this again when it is quiet, "
                "or give a higher --p99-ms"
            )
        winner = next(one for one in rates if one in done and done[one][0] >= _CLEAR * _best(done))
        for one in finalists:
            rate, p99_ms = done.get(one, (rates[one], self.rows[one].p99_ms))
            note = "the winner: the simplest that none beats clearly, in trials in turns with the next best"
            if one != winner:
                note = "measured again in turns with the winner" if one in done else "less when it was measured again"
            self.rows[one] = replace(self.rows[one], rate=rate, p99_ms=p99_ms, note=note)
        return self.rows[winner]

    def _gather(
        self,
        stack: contextlib.ExitStack,
        running: dict[ServerSetting, tuple[contextlib.ExitStack, MeasuredServer]],
        finalists: set[ServerSetting],
        rates: dict[ServerSetting, float],
        done: dict[ServerSetting, tuple[float, float]],
    ) -> list[ServerSetting]:
        """Return the finalists that can still win, running, and stop the others, which would take their time."""
        while True:
            if not finalists:
                finalists.update(_finalists(rates))
            turns = [one for one in rates if one in finalists and one not in done and _can_win(one, rates, done)]
            for one in [one for one in running if one not in turns]:
                running.pop(one)[0].close()
            try:
                for one in [one for one in turns if one not in running]:
                    own = stack.enter_context(contextlib.ExitStack())
                    running[one] = own, own.enter_context(self._start(one))
            except RegnetDeployError as error:  # it did before: what is known of the others is not lost for it
                self.rows[one] = replace(self.rows[one], rate=0.0, note=" ".join(str(error).split()))
                del rates[one]
                finalists.remove(one)
                finalists.update(_finalists(rates) if len(finalists) < _FINALISTS else [])
                continue
            return turns

    def _rounds(
        self,
        running: dict[ServerSetting, tuple[contextlib.ExitStack, MeasuredServer]],
        settings: Sequence[ServerSetting],
        rates: dict[ServerSetting, float],
    ) -> dict[ServerSetting, list[LoadTrial]]:
        """Measure settings in turns until as many trials kept to the limit as must, or that can no longer be."""
        trials: dict[ServerSetting, list[LoadTrial]] = {one: [] for one in settings}
        for _ in range(_ROUNDS):
            for one in settings:
                kept = sum(trial.keeps(self._limit_ms) for trial in trials[one])
                if kept < _ENOUGH and len(trials[one]) - kept <= _ROUNDS - _ENOUGH:
                    self._tell(f"again, in turns: {rates[one]:.1f} images/s of {one}", None)
                    trials[one].append(running[one][1].measure(rates[one]))
        return trials

    def _nothing(self) -> RegnetDeployError:
        rows = list(self.rows.values())
        seen = [row for row in rows if row.p99_ms is not None]
        if not seen and all(row.p99_ms is None and not row.trials for row in rows):
            return ServerError(f"no setting could be measured: {rows[0].note}")
        best = min(seen, key=lambda row: row.p99_ms or math.inf, default=None)
        found = f"the lowest p99 was {best.p99_ms:.1f} ms, with {best.setting}" if best else "nothing was answered"
        return UsageError(
            f"no setting keeps to a p99 of {self._limit_ms:g} ms here: {found}; nothing was written, give a higher "
            "--p99-ms"
        )


def _finalists(rates: dict[ServerSetting, float]) -> list[ServerSetting]:
    """Return the settings with the highest rates, and the simplest one that is near them."""
    best = sorted(rates, key=lambda one: -rates[one])[:_FINALISTS]
    near = [one for one in rates if rates[one] >= _NEAR * rates[best[0]]]
    return list(dict.fromkeys([*best, *near[:1]]))


def _can_win(
    one: ServerSetting, rates: dict[ServerSetting, float], done: dict[ServerSetting, tuple[float, float]]
) -> bool:
    """Tell whether a setting, if its rate is confirmed, is taken before those whose rates are."""
    order = list(rates)
    return all(
        _CLEAR * rates[one] > rate if order.index(other) < order.index(one) else rates[one] >= _CLEAR * rate
        for other, (rate, _) in done.items()
    )


def _best(done: dict[ServerSetting, tuple[float, float]]) -> float:
    return max((rate for rate, _ in done.values()), default=0.0)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

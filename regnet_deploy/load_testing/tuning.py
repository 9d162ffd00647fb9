"""Searches the setting of a server with the highest rate under a limit of latency.

The search varies one thing after another, each from the best setting so far: runtime and variant, executors and
threads, batch, delay. A setting that does not sustain nine tenths of the best rate is rejected after two trials. As
other work on the machine makes measurements vary, the best two settings and the simplest one near them are measured
again in turns, until each has a rate that passes in four of five trials. The winner is the simplest of these, which is
the one tried first, unless another one is clearly better.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from regnet_deploy.bundle.measurements import ServerSetting, TuningRow
from regnet_deploy.errors import RegnetDeployError, ServerError, UsageError
from regnet_deploy.load_testing.settings import SearchSpace
from regnet_deploy.progress import NoProgress, Progress

#: The rate of a setting is searched where it sustains this share of the best rate so far.
_WORTH = 0.9
#: A setting is better where its rate is this much higher, which is more than the error of the search. It is clearly
#: worse where its rate is below the first share of the best; the simplest setting above the second is a finalist.
_BETTER, _CLEAR, _NEAR = 1.06, 1 / 1.1, 1 / 1.25
#: First rate tried as a share of the capacity, and the lowest as a share of the first.
_FIRST, _LEAST = 0.6, 0.03
#: How often the best setting is measured again before a setting with a lower rate is rejected.
_DOUBTS = 2
#: Settings that are measured again, beside the simplest one.
_FINALISTS = 2
#: Trials that confirm a rate; how many of them must pass; the factor that lowers the rate where they do not, in the
#: n-th attempt n times; and the number of attempts.
_ROUNDS, _ENOUGH, _LOWER, _ATTEMPTS = 5, 4, 0.93, 8
#: First factor of the search of a rate; each further one is the square of the one before. Maximum number of its trials.
_STEP, _MAX_TRIALS = 1.2, 14


@dataclass(frozen=True)
class LoadTrial:
    """One load on a server with one setting.

    Attributes:
        rate: offered images/s.
        achieved: images/s with a correct answer.
        p99_ms: 99th percentile of latency; infinity where there was no answer.
        bad: number of requests without a correct answer.
    """

    rate: float
    achieved: float
    p99_ms: float
    bad: int

    def passes(self, limit_ms: float) -> bool:
        """Tell whether the latency was within the limit and every request had a correct answer."""
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


def tune(
    start: Start,
    space: SearchSpace,
    limit_ms: float,
    progress: Progress | None = None,
) -> tuple[TuningRow, list[TuningRow]]:
    """Find the setting with the highest rate whose 99th percentile of latency is within a limit.

    Args:
        start: starts a server.
        space: the settings to try.
        limit_ms: limit of the 99th percentile of latency.
        progress: gets a message for each setting.

    Returns:
        The winner with its confirmed rate, and the results of all settings that were tried.

    Raises:
        UsageError: no setting is within the limit; the message has the lowest p99.
        ServerError: no server starts.
    """
    search = _Search(start, limit_ms, progress or NoProgress(), len(space.pairs) + len(space.layouts) + 3)
    first = space.layouts[0]
    for runtime, variant in space.pairs:
        search.try_setting(ServerSetting(runtime, variant, *first), "runtime and variant")
    # The second best runtime may be the best with other executors: OpenVINO is fastest with one thread each.
    for best in search.ranking()[:2]:
        if best.rate >= _WORTH * search.best_rate:
            for executors, threads in space.layouts[1:]:
                setting = best.setting.replace(executors=executors, threads=threads)
                search.try_setting(setting, "executors x threads")
    if search.best_rate:
        _climb_batches(search, space.max_batch)
        _climb_delays(search, [delay for delay in space.delays_ms if delay <= limit_ms / 2])
    return search.confirmed(), list(search.rows.values())


def _climb_batches(search: _Search, max_batch: int) -> None:
    """Double the batch while that is better, or else halve it."""
    for factor in (2.0, 0.5):
        before = batch = search.ranking()[0].setting.batch
        while 1 <= int(batch * factor) <= max_batch:
            batch = int(batch * factor)
            if not search.try_setting(search.ranking()[0].setting.replace(batch=batch), "batch"):
                break
        if search.ranking()[0].setting.batch != before:
            return


def _climb_delays(search: _Search, delays: Sequence[float]) -> None:
    for delay in delays:
        best = search.ranking()[0].setting
        if best.batch == 1 or not search.try_setting(best.replace(max_delay_ms=delay), "delay"):
            return


class _Search:
    """The results so far."""

    def __init__(self, start: Start, limit_ms: float, progress: Progress, expected: int) -> None:
        self.rows: dict[ServerSetting, TuningRow] = {}
        self._start = start
        self._limit_ms = limit_ms
        self._progress = progress
        self._expected = expected
        progress.step("settings tried", expected)

    def show(self, note: str) -> None:
        """Show how many settings were tried; which are tried next depends on the results, so their number may grow."""
        self._progress.update(len(self.rows), max(self._expected, len(self.rows) + 1), note)

    @property
    def best_rate(self) -> float:
        return max((row.rate for row in self.rows.values()), default=0.0)

    def ranking(self) -> list[TuningRow]:
        """Return the results by falling rate; of equal ones the first tried is first."""
        return sorted(self.rows.values(), key=lambda row: -row.rate)

    def try_setting(self, setting: ServerSetting, stage: str) -> bool:
        """Measure a setting and tell whether it is better than all before."""
        if setting in self.rows:
            return False
        self.show(f"{stage}: {setting}")
        try:
            with self._start(setting) as candidate:
                row = self._explore(setting, candidate)
        except RegnetDeployError as error:
            row = TuningRow(setting, 0.0, None, 0, " ".join(str(error).split()))
        best = self.best_rate
        self.rows[setting] = row
        self._progress.message(str(row))
        return row.rate > _BETTER * best

    def _explore(self, setting: ServerSetting, candidate: MeasuredServer) -> TuningRow:
        trials: list[LoadTrial] = []
        for doubts in range(_DOUBTS + 1):
            gate = _WORTH * self.best_rate
            # Other work on the machine must not be the reason to reject a setting: the best one is measured again.
            if not gate or self._passes(candidate, gate, trials):
                break
            if doubts == _DOUBTS or not self._lower_best():
                lowest = min(trial.p99_ms for trial in trials)
                return TuningRow(setting, 0.0, _finite(lowest), len(trials), f"does not sustain {gate:.1f} images/s")
        rate, p99_ms = self._highest(candidate, self.best_rate or _FIRST * candidate.capacity(), trials)
        note = "" if rate else f"does not stay within {self._limit_ms:g} ms"
        return TuningRow(setting, rate, p99_ms, len(trials), note)

    def _lower_best(self) -> bool:
        """Measure the best setting again; lower its rate and return True where it does not sustain it now."""
        best = self.ranking()[0]
        trials: list[LoadTrial] = []
        with self._start(best.setting) as control:
            if self._passes(control, _WORTH * best.rate, trials):
                return False
            rate, p99_ms = self._highest(control, best.rate / 2, trials)
        trials_taken = best.trials + len(trials)
        self.rows[best.setting] = best.replace(
            rate=rate,
            p99_ms=p99_ms,
            trials=trials_taken,
            note="had a higher rate before",
            first_rate=max(best.rate, best.first_rate or 0.0),
        )
        return True

    def _passes(self, candidate: MeasuredServer, rate: float, trials: list[LoadTrial]) -> bool:
        """Try a rate, and once more where it failed: the rates of the finalists are confirmed later."""
        for _ in range(2):
            trials.append(candidate.measure(rate))
            if trials[-1].passes(self._limit_ms):
                return True
        return False

    def _highest(self, candidate: MeasuredServer, start: float, trials: list[LoadTrial]) -> tuple[float, float | None]:
        """Return the highest rate within the limit, or 0, and its p99, or the lowest measured."""
        least = max(0.5, _LEAST * start)
        find_rate(lambda rate: self._passes(candidate, rate, trials), start, least=least)
        kept = [trial for trial in trials if trial.passes(self._limit_ms)]
        if not kept:
            return 0.0, _finite(min(trial.p99_ms for trial in trials))
        highest = max(kept, key=lambda trial: trial.rate)
        return highest.rate, highest.p99_ms

    def confirmed(self) -> TuningRow:
        """Measure the finalists again in turns; return the simplest of those that are not clearly worse.

        Its rate passes in four of five trials.
        """
        rates = {row.setting: row.rate for row in self.rows.values() if row.rate}  # the simplest first
        if not rates:
            raise self._no_setting_error()
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
                    if sum(trial.passes(self._limit_ms) for trial in trials) >= _ENOUGH:
                        done[one] = (rates[one], statistics.median(trial.p99_ms for trial in trials))
                    else:
                        rates[one] *= _LOWER**attempt
                        lowest = min([lowest, *(trial.p99_ms for trial in trials)])
        if not done:
            raise UsageError(
                f"no setting stayed within a p99 of {self._limit_ms:g} ms when it was measured again; the lowest was "
                f"{lowest:.1f} ms: other programs are using this machine; nothing was written, run this again when the "
                "machine is idle, or give a higher --p99-ms"
            )
        winner = next(one for one in rates if one in done and done[one][0] >= _CLEAR * _best(done))
        for one in finalists:
            rate, p99_ms = done.get(one, (rates[one], self.rows[one].p99_ms))
            note = "selected: the simplest setting that is not clearly worse, measured again in turns"
            if one != winner:
                note = (
                    "measured again in turns with the selected one"
                    if one in done
                    else "lower rate when it was measured again"
                )
            before = max(self.rows[one].rate, self.rows[one].first_rate or 0.0)
            self.rows[one] = self.rows[one].replace(
                rate=rate, p99_ms=p99_ms, note=note, first_rate=before if before > rate else None
            )
        return self.rows[winner]

    def _gather(
        self,
        stack: contextlib.ExitStack,
        running: dict[ServerSetting, tuple[contextlib.ExitStack, MeasuredServer]],
        finalists: set[ServerSetting],
        rates: dict[ServerSetting, float],
        done: dict[ServerSetting, tuple[float, float]],
    ) -> list[ServerSetting]:
        """Return the finalists that can still win, with their servers running, and stop the servers of the others."""
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
            except RegnetDeployError as error:  # the server started before: the results of the others are kept
                self.rows[one] = self.rows[one].replace(rate=0.0, note=" ".join(str(error).split()))
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
        """Measure settings in turns until enough trials passed, or until that is no longer possible."""
        trials: dict[ServerSetting, list[LoadTrial]] = {one: [] for one in settings}
        for _ in range(_ROUNDS):
            for one in settings:
                kept = sum(trial.passes(self._limit_ms) for trial in trials[one])
                if kept < _ENOUGH and len(trials[one]) - kept <= _ROUNDS - _ENOUGH:
                    self.show(f"again, in turns: {rates[one]:.1f} images/s of {one}")
                    trials[one].append(running[one][1].measure(rates[one]))
        return trials

    def _no_setting_error(self) -> RegnetDeployError:
        rows = list(self.rows.values())
        seen = [row for row in rows if row.p99_ms is not None]
        if not seen and all(row.p99_ms is None and not row.trials for row in rows):
            return ServerError(f"no setting could be measured: {rows[0].note}")
        best = min(seen, key=lambda row: row.p99_ms or math.inf, default=None)
        found = f"the lowest p99 was {best.p99_ms:.1f} ms, with {best.setting}" if best else "there was no answer"
        return UsageError(
            f"no setting stays within a p99 of {self._limit_ms:g} ms here: {found}; nothing was written, give a higher "
            "--p99-ms"
        )


def _finalists(rates: dict[ServerSetting, float]) -> list[ServerSetting]:
    """Return the settings with the highest rates, and the simplest one with a rate near them."""
    best = sorted(rates, key=lambda one: -rates[one])[:_FINALISTS]
    near = [one for one in rates if rates[one] >= _NEAR * rates[best[0]]]
    return list(dict.fromkeys([*best, *near[:1]]))


def _can_win(
    one: ServerSetting, rates: dict[ServerSetting, float], done: dict[ServerSetting, tuple[float, float]]
) -> bool:
    """Tell whether a setting would win over those with confirmed rates if its own were confirmed."""
    order = list(rates)
    return all(
        _CLEAR * rates[one] > rate if order.index(other) < order.index(one) else rates[one] >= _CLEAR * rate
        for other, (rate, _) in done.items()
    )


def _best(done: dict[ServerSetting, tuple[float, float]]) -> float:
    return max((rate for rate, _ in done.values()), default=0.0)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def find_rate(passes: Callable[[float], bool], start: float, *, least: float, precision: float = 0.05) -> float:
    """Return the highest rate that passed in few trials; 0 where not even ``least`` did.

    Goes up or down from ``start`` in growing steps until one rate passes and a higher one fails, then bisects between
    them by their geometric mean. Where all rates below a limit pass and all above fail, the result is at most
    ``precision`` below the limit.

    Args:
        passes: tries a rate.
        start: first rate.
        least: lowest rate that is tried.
        precision: the search ends where the lowest failed rate is at most ``1 + precision`` times the highest passed.
    """
    low, high, step = 0.0, math.inf, _STEP
    rate = max(start, least)
    for _ in range(_MAX_TRIALS):
        if passes(rate):
            low = rate
        else:
            high = rate
        if low and high < math.inf:
            if high <= low * (1 + precision):
                break
            rate = math.sqrt(low * high)
        elif not low and rate <= least:
            break
        else:
            rate = low * step if low else max(least, high / step)
            step *= step
    return low

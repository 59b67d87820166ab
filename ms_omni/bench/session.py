"""Which scenarios run where, in which order: both sides stay alive and take turns, so that the machine's drift hits both.

load, in fresh processes:     A B A B ...
then for each scenario:       warm-up of A, warm-up of B, then A B A B ...
"""

import sys
from dataclasses import dataclass, field

from .metrics import combine
from .side import HereSide, SideError

WARM_UPS = 4


@dataclass
class Outcome:
    """results: `Result`s; counts {scenario: {name: number}}; failures: one line each; about {side: its description};
    recompiled: graphs that were built in repetitions that were timed.
    """

    results: list = field(default_factory=list)
    counts: dict = field(default_factory=dict)
    failures: list = field(default_factory=list)
    about: dict = field(default_factory=dict)
    recompiled: int = 0


class Session:
    """start: functions that start a side, ours first, then perhaps the reference; settings: of `load`, per side."""

    def __init__(self, start, settings, repetitions, say=lambda text: None):
        self.start, self.settings, self.repetitions, self.say = start, settings, repetitions, say
        self.outcome = Outcome()

    def run(self, scenarios, measure_load=True):
        """Runs everything and returns the `Outcome`. What fails is noted there and the rest goes on."""
        if measure_load:
            self._load_repeatedly()
        sides = [start() for start in self.start]
        try:
            sides = [side for side, settings in zip(sides, self.settings) if self._load(side, settings)]
            if sides and sides[0].name == "ms_omni":
                for scenario in scenarios:
                    self._measure(scenario, [sides[0]] if scenario.counted or scenario.alone else sides)
        except KeyboardInterrupt:  # what has been measured is kept
            self.outcome.failures.append("interrupted; what is missing was not measured")
        finally:
            for side in sides:
                side.close()
        return self.outcome

    def _load(self, side, settings):
        self.say(f"{side.name}: loading")
        try:
            done = side.load(**settings)
        except SideError as error:
            self.outcome.failures.append(str(error))
            side.close()
            return False
        if isinstance(side, HereSide):
            self.outcome.results += combine("load", "load", [done])
        self.outcome.about[side.name] = {key: value for key, value in done.items() if isinstance(value, str)}
        return True

    def _load_repeatedly(self):
        runs = [[] for _ in self.start]
        for turn in range(self.repetitions + 1):  # the first brings the files into the system's cache
            self.say(f"load: {'warm-up' if turn == 0 else f'{turn}/{self.repetitions}'}")
            for start, settings, kept in zip(self.start, self.settings, runs):
                side = start()
                try:
                    done = side.load(**settings)
                    kept += [done] if turn else []
                except SideError as error:
                    self.outcome.failures.append(str(error))
                    return
                finally:
                    side.close()
        self.outcome.results += combine("load", "load", *runs)

    def _measure(self, scenario, sides):
        runs = []
        try:
            for side in sides:
                self.say(f"{scenario.name}: warm-up of {side.name}")
                self._warm_up(side, scenario)
            runs = [[] for _ in sides]
            for turn in range(1 if scenario.counted else self.repetitions):
                self.say(f"{scenario.name}: {turn + 1}/{self.repetitions}")
                for side, kept in zip(sides, runs):
                    kept.append(side.run(scenario.kind, scenario.settings))
        except SideError as error:
            self.outcome.failures.append(f"{scenario.name}: {error}")
            return
        if scenario.counted:
            self.outcome.counts[scenario.name] = runs[0][0]
        else:
            self.outcome.recompiled += sum(run.get("compiled", 0) for run in runs[0])
            self.outcome.results += combine(scenario.name, scenario.part, *runs)

    def _warm_up(self, side, scenario):
        """Until nothing is compiled any more, unless a scenario warms itself."""
        for _ in range(0 if scenario.counted or scenario.alone else WARM_UPS):
            if not side.run(scenario.kind, scenario.settings).get("compiled"):
                return


def show_progress(text):
    """A line on standard error: rewritten on a terminal, plain elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)

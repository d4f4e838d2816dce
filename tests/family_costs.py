"""pytest --family-costs: what each family of tests/families_table.py adds to a test run, in seconds.

Its tests, and its runs in the launches of tests/promises, each once; without what all share: the fixtures of the session, and
the starts of those launches.
Seconds of a busy machine are longer: `cpu` says what the main ranks of its runs have computed.
"""

import time
from collections import defaultdict
from collections.abc import Generator, Iterator

import pytest

from tests.families_table import CASES

FAMILY, RUN, WAITED = "family", "run", "waited_s"
"""Properties of a test: the family that it is about; a run that it reads, as (name, seconds, CPU seconds); how long it waited
for runs and for the fixtures of the session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--family-costs", action="store_true", help="say what each family adds to this test run")


def pytest_itemcollected(item: pytest.Item) -> None:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    item.user_properties += [(FAMILY, value) for value in parameters if isinstance(value, str) and value in CASES]


class SessionFixtures:
    """Tells the test that is the first to need a fixture of the session how long it waited for it."""

    properties: list[tuple[str, object]]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.properties = item.user_properties

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        begin = time.monotonic()
        try:
            return (yield)
        finally:
            if fixturedef.scope == "session":
                self.properties.append((WAITED, time.monotonic() - begin))


def pytest_configure(config: pytest.Config) -> None:
    """A plugin, because a conftest.py hears nothing of the session's fixtures."""
    config.pluginmanager.register(SessionFixtures())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--family-costs"):
        return
    tests, counts = defaultdict(float), defaultdict(int)
    runs: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for report in _reports(terminalreporter):
        for family in {value for key, value in report.user_properties if key == FAMILY}:
            waited = sum(value for key, value in report.user_properties if key == WAITED and report.when == "setup")
            tests[family] += report.duration - waited
            counts[family] += report.when == "call"
            runs[family] |= {value[0]: value[1:] for key, value in report.user_properties if key == RUN}
    terminalreporter.section("what each family adds")
    for family in sorted(tests):
        wall, cpu = (sum(spent[part] for spent in runs[family].values()) for part in (0, 1))
        terminalreporter.write_line(
            f"{family}: {tests[family] + wall:.1f} s; {counts[family]} tests {tests[family]:.1f} s, "
            f"{len(runs[family])} runs {wall:.1f} s (cpu {cpu:.1f} s)"
        )


def _reports(terminalreporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    for reports in terminalreporter.stats.values():
        yield from (report for report in reports if isinstance(report, pytest.TestReport))

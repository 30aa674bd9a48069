"""The report of several lanes, made from what pytest kept of each."""

from pathlib import Path

import pytest

from tests import report

TESTS = """
import time, pytest
def test_works(): time.sleep(0.01)
def test_breaks(): assert not "this"
@pytest.fixture
def broken(): raise OSError
def test_cannot_begin(broken): ...
@pytest.mark.skip(reason="there is no Grafana")
def test_is_left_out(): ...
"""
CONFTEST = """
import pytest
from tests import report
from pathlib import Path
pytest_plugins = ["tests.report"]
report.LANES = Path(__file__).parent / "lanes"
@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        report.sections.append(("Evidence", "it lies in the folder results"))
    return report
"""

pytest_plugins = ["pytester"]


def test_one_report_has_every_lane_what_was_slow_what_was_skipped_and_the_load_of_what_failed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    monkeypatch.setenv("PYTHONPATH", str(Path(report.__file__).parent.parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # only what this needs: others take seconds to import
    ran = pytester.runpytest_subprocess("--lane=work", "-p", "xdist", "--numprocesses=2")
    ran.assert_outcomes(passed=1, failed=1, errors=1, skipped=1)
    monkeypatch.setattr(report, "LANES", pytester.path / "lanes")
    names = ["work", "pages"]
    lines = report.text(names, report.read(names)).splitlines()
    [work] = [it for it in lines if "work: " in it]
    outcomes, _, ended = work.partition(": ")[2].partition("; ")
    assert sorted(outcomes.split(", ")) == ["1 passed", "1 skipped", "2 failed"]
    assert ended == "pytest ended with status 1"
    assert "        ?  pages: it did not come to its end" in lines
    assert [it for it in lines if it.endswith(" s  call test_it.py::test_works")]
    assert "test_it.py::test_is_left_out: there is no Grafana" in lines
    failed = lines[lines.index(next(it for it in lines if it.startswith("== failed"))) + 1 :]
    assert {it.split("  ")[-1] for it in failed[::2]} == {
        "test_it.py::test_breaks (call)", "test_it.py::test_cannot_begin (setup)",
    }  # fmt: skip
    assert failed[1::2] == ["it lies in the folder results"] * 2


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((0, 1), 1), ((2, 0), 1), ((0,), 1)],
    ids=["none failed", "a test failed", "nothing was collected", "one did not end"],
)
def test_the_report_fails_if_a_lane_did(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statuses: tuple[int, ...],
    status: int,
) -> None:
    monkeypatch.setattr(report, "LANES", pytester.path)
    for name, ended in zip(("one", "other"), statuses, strict=False):
        report.Lane(name).pytest_sessionfinish(ended)
    assert report.main(["one", "other"]) == status
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "nothing"  # failed
    assert len([it for it in printed if " one: " in it or " other: " in it]) == 2

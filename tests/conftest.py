"""What every test shares."""

from pathlib import Path

import pytest
import torch

# Workers of pytest-xdist and the ranks they start share few cores.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _rules_found_are_kept_apart(tmp_path_factory: pytest.TempPathFactory):
    """Rules found by tests are neither those of the user's cache nor go there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERSCALER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files under tests/golden anew")


def pytest_terminal_summary(terminalreporter) -> None:
    """How many rules of operators were put to the test, and by how many cuts."""
    experiments = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == "cut_experiments"
    ]
    if experiments:
        kinds, cuts = len({kind for kind, _ in experiments}), sum(count for _, count in experiments)
        terminalreporter.write_line(f"rules: {kinds} kinds of operators, {cuts:,} cut experiments")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """``golden("mlp/graph.txt", text)``: the text equals the file under tests/golden, or becomes it."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no file {path}: run pytest with --update-golden"
        assert path.read_text() == text, "the text changed; if that is meant, run pytest with --update-golden"

    return compare

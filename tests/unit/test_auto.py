"""`--algorithm auto` is the algorithm that it names, row for row."""

import pytest

from search import algorithms, config
from search.algorithms import auto
from search.objectives import Score
from tests.calibrated import calibrated


@pytest.mark.parametrize(
    "argv, name",
    [
        ("", "coordinate"),
        ("--episodes 512", "coordinate"),
        ("--episodes 513", "cma"),
        ("--episodes 4096 --search-tmax", "hill"),
        ("--objective pareto", "hill"),
        ("--objective kd", "coordinate"),
        ("--algorithm random", "random"),
    ],
)
def test_what_works_follows_from_what_is_asked(argv, name):
    assert algorithms.working(config.parse(argv.split())) == name


@pytest.mark.parametrize("options", [auto.Options(), auto.Options(episodes=1000), auto.Options(objective="pareto")])
def test_it_proposes_what_the_other_would(options):
    calibration = calibrated(15, 35, 110)
    one, other = (
        module.Search(calibration, 3, *given)
        for module, given in ((auto, [options]), (algorithms.find(auto.chosen(options)), []))
    )
    for _ in range(8):
        asked = one.ask(8)
        assert asked == other.ask(8)
        for search in (one, other):
            search.tell(asked, [Score((float(sum(map(sum, each))),)) for each in asked])

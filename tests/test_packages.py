"""A package that an adapter needs is missing, too old or too new: the message says what came and what to do."""

import pytest

from agentenv.errors import UsageError
from agentenv.packages import EXTRAS, Package, is_new_enough, require


def test_an_installed_release_within_the_range_is_accepted():
    require(Package(name="numpy", module="numpy", minimum="1.26", below="99"), extra="train")


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (
            Package(name="no-such-package", module="no_such_package", minimum="1.2", below="2"),
            r'not installed; no-such-package>=1.2,<2 is needed: install it with: pip install "agentenv\[games\]"',
        ),
        (Package(name="numpy", module="numpy", minimum="99"), r"numpy [\d.]+ is installed; numpy>=99 is needed"),
        (Package(name="numpy", module="numpy", minimum="1", below="1.5"), r"is installed; numpy>=1,<1.5 is needed"),
    ],
)
def test_a_missing_or_wrong_release_is_told_with_the_remedy(package, message):
    with pytest.raises(UsageError, match=message):
        require(package, extra="games")


@pytest.mark.parametrize("extra", ["reasoning-gym", "textarena", "pettingzoo", "openenv"])
def test_the_ranges_of_adapters_hold_a_release(extra):
    (package,) = EXTRAS[extra]
    assert not package.below or is_new_enough(package.below, minimum=package.minimum)

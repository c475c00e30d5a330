"""The table of features names tests; they must be there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "features.md"
LINKS = sorted(set(re.findall(r"`(tests/[^`]+)`", TABLE.read_text())))


@pytest.mark.parametrize("link", LINKS)
def test_the_test_of_a_feature_exists(link):
    path, _, name = link.partition("::")
    assert (ROOT / path).exists()
    assert not name or f"def {name}(" in (ROOT / path).read_text()


def test_no_feature_is_claimed_without_a_test():
    rows = [line.split("|")[1:3] for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    claims = {feature.strip(): ours.strip() for feature, ours in rows[1:] if not feature.strip().startswith("**")}
    assert len(claims) > 30
    for feature, ours in claims.items():
        assert ours == "-" or ours.startswith("Y: `tests/"), feature

"""What users get is what was recorded; `record.py` tells how, and records anew."""

import pytest

from tests.reference.record import DATA, differences, load_section, run_section


@pytest.mark.parametrize(
    "section",
    [
        pytest.param("house", marks=pytest.mark.slow),
        pytest.param("supernet", marks=pytest.mark.slow),
        pytest.param("search", marks=pytest.mark.data),
        "errors",
    ],
)
def test_users_get_what_was_recorded(section, tmp_path):
    if section == "search" and not DATA.exists():
        pytest.skip(f"real data missing: no ofa in TAILORBIRD_DATA ({DATA.parent})")
    found = differences(load_section(section), run_section(section, tmp_path))
    assert not found, "\n".join(found)

"""What the records of the manifest tell beside their values."""

from __future__ import annotations

import pytest

from regnet_deploy.bundle.manifest import WeightsOrigin


@pytest.mark.parametrize(
    ("license", "restricted"),
    [
        ("CC-BY-NC-4.0", True),
        ("cc-by-nc-sa-4.0", True),
        ("CC BY-NC 4.0", True),
        ("seer-license", True),
        ("CC-BY-4.0", False),
        ("MIT", False),
        (None, False),
    ],
)
def test_a_license_that_forbids_commercial_use_is_a_restriction(license: str | None, restricted: bool) -> None:
    origin = WeightsOrigin(file="w.pth", sha256="0" * 64, source="timm", container="torch zip", license=license)
    said = f"the weights w.pth must not be used commercially: their license is {license}"
    assert origin.restriction == (said if restricted else None)
    assert origin.license_text == license
    doubtful = origin.replace(assumed=True)
    said = None if license is None else f"{license} (assumed, by the name of the file)"
    assert doubtful.license_text == said
    if doubtful.restriction:
        assert doubtful.restriction.endswith(f"their license is {said}")

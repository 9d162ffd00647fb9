"""Names of files are shown so that a terminal acts on none of them."""

import pytest

from regnet_deploy.images.names import printable, shortened


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat 1.png", "cat 1.png"),
        ("ü猫.png", "ü猫.png"),
        ("a\nb.png", "a\\nb.png"),
        ("\x1b[31mred.png", "\\x1b[31mred.png"),
        ("ü\udcff.png", "ü\\udcff.png"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert shortened([name, name, name], 2) == f"{shown}, {shown}, ..."

"""Templates are found, and every place of them is filled."""

from __future__ import annotations

import pytest

from regnet_deploy.targets.templates import dump_yaml, fill, load_yaml, template_folder


def test_every_target_has_its_folder():
    assert {path.name for path in template_folder().iterdir()} >= {"triton", "kserve", "ray", "compose"}


def test_a_place_without_a_value_is_a_bug():
    with pytest.raises(KeyError):
        fill("triton/Dockerfile", {})


def test_yaml_keeps_what_looks_like_something_else():
    yaml = pytest.importorskip("yaml")
    values = {"a": "yes", "b": "1.0", "c": "x: y # z", "d": "null", "e": "- a\n- b"}
    assert yaml.safe_load(dump_yaml(values, head="from a test")) == values


def test_templates_in_yaml_are_yaml():
    pytest.importorskip("yaml")
    assert load_yaml("compose/docker-compose.yaml")[0]["services"].keys() == {"server", "prometheus", "grafana"}

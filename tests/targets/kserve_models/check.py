"""Hold manifests against the typed models of the kserve package: run by a Python that has it, with their paths.

Every key must be an attribute of the model at its place, of the type that the model says, and what a model requires
must be there. Prints the names of the models that it met.
"""

import json
import re
import sys

import kserve
import kubernetes.client as kubernetes
import yaml

PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}


def check(kind, value, where, met):
    """Check ``value`` against a type as the models name it: ``str``, ``list[V1Container]``, ``dict(str, str)``."""
    if match := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        assert isinstance(value, list), f"{where}: {value!r} is no list"
        for i, entry in enumerate(value):
            check(match[1], entry, f"{where}[{i}]", met)
        return
    if match := re.fullmatch(r"[Dd]ict[(\[](.+?), (.+)[)\]]", kind):
        assert isinstance(value, dict), f"{where}: {value!r} is no object"
        for name, entry in value.items():
            check(match[1], name, where, met)
            check(match[2], entry, f"{where}.{name}", met)
        return
    if kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{where}: {value!r} is not {kind}"
        return
    model = getattr(kserve, kind, None) or getattr(kubernetes, kind, None)
    if model is None:
        # Kubernetes' quantities and ports are one of several plain types.
        assert kind in ("ResourceQuantity", "IntOrString"), f"{where}: there is no model {kind}"
        assert isinstance(value, (str, int)), f"{where}: {value!r} is not {kind}"
        return
    assert isinstance(value, dict), f"{where}: {value!r} is no {kind}"
    met.add(kind)
    attributes = {there: name for name, there in model.attribute_map.items()}
    for key, entry in value.items():
        assert key in attributes, f"{where}: {kind} has no {key}"
        check(model.openapi_types[attributes[key]], entry, f"{where}.{key}", met)
    model(**{attributes[key]: entry for key, entry in value.items()})  # says what is missing


for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        manifest = yaml.safe_load(file)
    found = set()
    check("V1beta1InferenceService", manifest, manifest["kind"], found)
    print(json.dumps(sorted(found)))

import json
import os
import subprocess
import sys

from regnet_deploy import __version__
from regnet_deploy.profiling.machine import busy_cores, describe_machine, environment


def test_the_description_is_json_and_names_cpu_cores_memory_and_versions():
    machine = describe_machine()
    described = json.loads(json.dumps(machine.to_json()))
    assert described["cpu"]
    assert described["system"]
    assert 1 <= described["cores"] <= os.cpu_count()
    assert 2**20 < described["memory_bytes"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert described["python"] == sys.version.split()[0]
    assert described["versions"]["regnet-deploy"] == __version__
    assert {"numpy", "torch"} <= set(described["versions"])


def test_the_description_does_not_name_the_host_or_the_user():
    text = json.dumps(describe_machine().to_json())
    assert os.uname().nodename not in text
    assert os.path.expanduser("~") not in text


def test_describing_the_machine_imports_nothing_heavy():
    program = (
        "import sys; from regnet_deploy.profiling.machine import describe_machine; describe_machine(); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_busy_cores_counts_what_others_do_and_not_the_looking():
    spinning = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    program = subprocess.Popen([sys.executable, "-c", spinning])
    try:
        assert max(busy_cores(0.5) for _ in range(4)) > 0.3  # at least part of a core, whatever else is running
    finally:
        program.kill()
        program.wait()
    assert 0 <= busy_cores(0.1) <= os.cpu_count() + 0.5


def test_the_environment_says_what_wrote_a_part_where_and_when():
    written = environment("profile")["profile"]
    machine = describe_machine()
    assert written.items() >= {**machine.versions, "cpu": machine.cpu, "python": machine.python}.items()
    assert written["date"].endswith("+00:00")

"""Limits of nested control groups, as files of /proc and /sys that were written like those of real machines."""

import math

import pytest

from regnet_deploy.cgroup import cpu_quota, memory_limit

GIB = 2**30
V2 = "29 23 0:26 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
V1 = "33 25 0:29 {root} {mount} rw,nosuid shared:9 - cgroup cgroup rw,{controllers}"
OTHER = "22 27 0:21 / /proc rw,nosuid shared:5 - proc proc rw\nnot a line of mountinfo"


def v2(root: str = "/", mount: str = "/sys/fs/cgroup") -> str:
    return V2.format(root=root, mount=mount)


def v1(controllers: str, root: str = "/", mount: str = "") -> str:
    return V1.format(root=root, mount=mount or f"/sys/fs/cgroup/{controllers}", controllers=controllers)


def tree(cgroup: str, *mounts: str) -> dict[str, str]:
    """The files that say what the process is in, and what is mounted."""
    return {"/proc/self/cgroup": cgroup, "/proc/self/mountinfo": "\n".join((OTHER, *mounts))}


CPUS = {
    "no cgroups": ({}, math.inf),
    "without /proc": ({"/sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
    "without /proc, version 1": (
        {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
        1.5,
    ),
    "a container, version 2": (tree("0::/", v2()) | {"/sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
    "no limit": (tree("0::/a", v2()) | {"/sys/fs/cgroup/a/cpu.max": "max 100000"}, math.inf),
    "systemd's CPUQuota": (
        tree("0::/system.slice/train.service", v2())
        | {
            "/sys/fs/cgroup/system.slice/train.service/cpu.max": "50000 100000",
            "/sys/fs/cgroup/system.slice/cpu.max": "max 100000",
        },
        0.5,
    ),
    "a slice around the unit": (
        tree("0::/a.slice/a-b.slice/c.service", v2())
        | {
            "/sys/fs/cgroup/a.slice/a-b.slice/c.service/cpu.max": "800000 100000",
            "/sys/fs/cgroup/a.slice/a-b.slice/cpu.max": "max 100000",
            "/sys/fs/cgroup/a.slice/cpu.max": "300000 100000",
        },
        3,
    ),
    "the root of a mount has the limit": (
        tree("0::/init/job", v2()) | {"/sys/fs/cgroup/cpu.max": "100000 100000"},
        1,
    ),
    "another unit's limit": (
        tree("0::/system.slice/a.service", v2()) | {"/sys/fs/cgroup/system.slice/b.service/cpu.max": "1000 100000"},
        math.inf,
    ),
    "Docker, version 1": (
        tree("4:cpu,cpuacct:/docker/f00\n3:memory:/docker/f00", v1("cpu,cpuacct", root="/docker/f00"))
        | {
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        2.5,
    ),
    "Docker in Docker, version 1": (
        tree("4:cpuacct,cpu:/docker/f00/docker/ba5", v1("cpu,cpuacct", root="/docker/f00"))
        | {
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "/sys/fs/cgroup/cpu,cpuacct/docker/ba5/cpu.cfs_quota_us": "400000",
            "/sys/fs/cgroup/cpu,cpuacct/docker/ba5/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "version 1 without a limit": (
        tree("4:cpu:/a", v1("cpu"))
        | {"/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
    "both versions: controllers in version 1": (
        tree(
            "4:cpu:/user.slice\n1:name=systemd:/user.slice\n0::/user.slice/x",
            v1("cpu"),
            v2(mount="/sys/fs/cgroup/unified"),
        )
        | {
            "/sys/fs/cgroup/cpu/user.slice/cpu.cfs_quota_us": "300000",
            "/sys/fs/cgroup/cpu/user.slice/cpu.cfs_period_us": "100000",
            "/sys/fs/cgroup/unified/user.slice/cpu.max": "max 100000",
        },
        3,
    ),
    "another controller's hierarchy": (
        tree("4:cpuset:/a\n5:cpu:/b", v1("cpuset"), v1("cpu"))
        | {
            "/sys/fs/cgroup/cpuset/a/cpu.cfs_quota_us": "1000",
            "/sys/fs/cgroup/cpuset/a/cpu.cfs_period_us": "100000",
        },
        math.inf,
    ),
    "a mount elsewhere, with a space in its name": (
        tree("0::/a", v2(mount="/mnt/control\\040groups"))
        | {"/mnt/control groups/a/cpu.max": "200000 100000", "/sys/fs/cgroup/a/cpu.max": "100000 100000"},
        2,
    ),
    "a cgroup namespace, mounted from outside": (
        tree("0::/../../job", v2(root="/../..")) | {"/sys/fs/cgroup/job/cpu.max": "200000 100000"},
        2,
    ),
    "a namespace below a mount whose names are not known": (
        tree("0::/inner", v2(root="/../.."))
        | {"/sys/fs/cgroup/cpu.max": "400000 100000", "/sys/fs/cgroup/inner/cpu.max": "100000 100000"},
        4,
    ),
    "a process outside of its namespace": (
        tree("0::/../job", v2()) | {"/sys/fs/cgroup/cpu.max": "100000 100000"},
        math.inf,
    ),
    "a mount of another part of the hierarchy": (
        tree("0::/a", v2(root="/b")) | {"/sys/fs/cgroup/cpu.max": "100000 100000"},
        math.inf,
    ),
    "a path with a colon": (
        tree("0::/a:b/c", v2()) | {"/sys/fs/cgroup/a:b/cpu.max": "100000 100000"},
        1,
    ),
    "nonsense": (tree("x\n0::/a", v2()) | {"/sys/fs/cgroup/a/cpu.max": "many 0"}, math.inf),
    "a period of zero": (tree("0::/a", v2()) | {"/sys/fs/cgroup/a/cpu.max": "1000 0"}, math.inf),
}


@pytest.mark.parametrize(("files", "cores"), CPUS.values(), ids=CPUS)
def test_the_least_quota_from_the_process_to_the_root_counts(files: dict[str, str], cores: float):
    assert cpu_quota(files.get) == cores


MEMORY = {
    "no cgroups": ({}, None),
    "without /proc": ({"/sys/fs/cgroup/memory.max": f"{GIB}"}, GIB),
    "without /proc, version 1": ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}"}, GIB),
    "no limit": (tree("0::/a", v2()) | {"/sys/fs/cgroup/a/memory.max": "max"}, None),
    "a pod around a container": (
        tree("0::/kubepods/pod1/c1", v2())
        | {
            "/sys/fs/cgroup/kubepods/pod1/c1/memory.max": "max",
            "/sys/fs/cgroup/kubepods/pod1/memory.max": f"{2 * GIB}",
            "/sys/fs/cgroup/kubepods/memory.max": f"{64 * GIB}",
        },
        2 * GIB,
    ),
    "version 1": (
        tree("9:memory:/docker/f00/job\n0::/", v1("memory", root="/docker/f00"))
        | {
            "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}",
        },
        3 * GIB,
    ),
}


@pytest.mark.parametrize(("files", "limit"), MEMORY.values(), ids=MEMORY)
def test_the_least_memory_from_the_process_to_the_root_counts(files: dict[str, str], limit: int | None):
    assert memory_limit(files.get) == limit

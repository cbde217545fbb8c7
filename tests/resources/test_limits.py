"""What applies to a process in control groups: the golden cases, and more of the same kinds.

What is expected of the latter follows from the kernel's documents: cgroup-v2.rst,
cgroup-v1/memory.rst, sched-bwc.rst; cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Never

import pytest

from flask_workersize import HostFacts, detect_resources
from tests.resources.machines import (
    GB,
    HOST,
    MB,
    OTHER_MOUNTS,
    ROOT,
    V1_UNLIMITED,
    Case,
    FixtureFiles,
    cfs,
    golden_cases,
    mount,
    texts,
    v1,
    v2,
)

GOLDEN = golden_cases()
HOST_MEMORY = {"memory_limit": 16 * GB, "memory_available": 12 * GB, "memory_source": "host"}
HOST_CPUS = {"cpus": 8.0, "cpu_source": "host", "cpu_at": None}
NOTHING = {**HOST_MEMORY, **HOST_CPUS, "memory_at": None, "notes": []}


def maximum(bytes_: object) -> dict[str, object]:
    return {"memory.max": bytes_}


def at(folder: str, limit: int, source: str = "cgroup2:memory.max") -> dict[str, Any]:
    return {"memory_limit": limit, "memory_source": source, "memory_at": f"{ROOT}{folder}"}


V1_OWN = "cgroup1:memory.limit_in_bytes"
V1_INHERITED = "cgroup1:hierarchical_memory_limit"
PRIVATE = mount(ROOT)

WALK = [
    Case(
        "middle group tightest of four",
        v2(
            "/a/b/c",
            {
                "/a/b/c": maximum(900 * MB),
                "/a/b": maximum(300 * MB),
                "/a": maximum(600 * MB),
                "": maximum(1200 * MB),
            },
        ),
        {**at("/a/b", 300 * MB), "notes": []},
    ),
    Case(
        "CPU and memory bound by different groups",
        v2("/a/b", {"/a/b": {"cpu.max": "50000 100000"}, "/a": maximum(1 * GB)}),
        {**at("/a", 1 * GB), "cpus": 0.5, "cpu_at": f"{ROOT}/a/b"},
    ),
    Case(
        "equal limits: the leaf is named",
        v2("/a/b", {"/a/b": maximum(1 * GB), "/a": maximum(1 * GB)}),
        at("/a/b", 1 * GB),
    ),
    Case(
        "quota compared as a fraction, not as microseconds",
        v2("/a/b", {"/a/b": {"cpu.max": "900000 1000000"}, "/a": {"cpu.max": "10000 10000"}}),
        {"cpus": 0.9, "cpu_at": f"{ROOT}/a/b"},
    ),
    Case(
        "a sibling's limit is not ours",
        v2("/a/b", {"/a/c": {**maximum(1 * MB), "cpu.max": "1000 100000"}}),
        NOTHING,
    ),
    Case(
        "a child's limit is not ours",
        v2("/a", {"/a/b": {**maximum(1 * MB), "cpu.max": "1000 100000"}}),
        NOTHING,
    ),
    Case(
        "a group that was removed: what is above it holds",
        v2("/a/b (deleted)", {"/a": maximum(1 * GB)}),
        {**at("/a", 1 * GB), "notes": ["approximate"]},
    ),
    Case(
        "a group whose name ends as that of a removed one",
        v2("/a/b (deleted)", {"/a": maximum(2 * GB), "/a/b (deleted)": maximum(1 * GB)}),
        {**at("/a/b (deleted)", 1 * GB), "notes": []},
    ),
    Case(
        "a group whose folder cannot be seen: what is above it holds",
        {
            **v2("/", {"/a": maximum(1 * GB)}),
            "/proc/self/cgroup": "0::/a/b\n",
        },
        {**at("/a", 1 * GB), "notes": ["unreadable"]},
    ),
    Case(
        "something else is mounted over the groups",
        v2(
            "/a",
            {"/a": maximum(1 * GB)},
            mount(ROOT),
            f"31 30 0:31 /inaccessible {ROOT} ro shared:1 - tmpfs tmpfs ro,mode=000\n",
        ),
        {**NOTHING, "notes": ["unreadable"]},
    ),
    Case(
        "something else was mounted there before",
        v2(
            "/a",
            {"/a": maximum(1 * GB)},
            f"29 21 0:31 / {ROOT} rw shared:1 - tmpfs tmpfs rw\n",
            mount(ROOT),
        ),
        {**at("/a", 1 * GB), "notes": []},
    ),
    Case(
        "v1: a group above that does not count those below it",
        v1(
            "/a/b/c",
            {
                "/a/b/c": {"memory.limit_in_bytes": 4 * GB},
                "/a/b": {"memory.limit_in_bytes": 2 * GB, "memory.use_hierarchy": 1},
                "/a": {"memory.limit_in_bytes": 1 * GB, "memory.use_hierarchy": 0},
                "": {"memory.limit_in_bytes": 1 * MB, "memory.use_hierarchy": 0},
            },
        ),
        {**at("/memory/a/b", 2 * GB, V1_OWN), "notes": ["approximate"]},
    ),
    Case(
        "v1: the group itself always counts",
        v1("/a", {"/a": {"memory.limit_in_bytes": 1 * GB, "memory.use_hierarchy": 0}}),
        {**at("/memory/a", 1 * GB, V1_OWN), "notes": []},
    ),
    Case(
        "controller not enabled in the leaf",
        v2("/a/b", {"/a/b": {"cgroup.procs": 1}, "/a": {"cpu.max": "200000 100000"}}),
        {**HOST_MEMORY, "cpus": 2.0, "cpu_at": f"{ROOT}/a", "notes": []},
    ),
    Case(
        "v1: quota of the parent",
        v1("/a/b", cpu={"/a/b": cfs(-1), "/a": cfs(250_000), "": cfs(-1)}),
        {"cpus": 2.5, "cpu_at": f"{ROOT}/cpu,cpuacct/a", "notes": []},
    ),
    Case(
        "v1: the least of three quotas",
        v1("/a/b", cpu={"/a/b": cfs(300_000), "/a": cfs(100_000, 50_000), "": cfs(600_000)}),
        {"cpus": 2.0, "cpu_at": f"{ROOT}/cpu,cpuacct/a"},
    ),
    Case(
        "v1: limit on the mount point itself",
        v1("/init.scope", {"": {"memory.limit_in_bytes": 1 * GB}}, {"": cfs(50_000)}),
        {**at("/memory", 1 * GB, V1_OWN), "cpus": 0.5},
    ),
]

V2_MEMORY = [
    Case(
        "memory.high alone",
        v2("/", {"": {"memory.max": "max", "memory.high": 512 * MB}}),
        {**at("", 512 * MB, "cgroup2:memory.high"), "notes": []},
    ),
    Case(
        "memory.high without a file memory.max",
        v2("/a", {"/a": {"memory.high": 512 * MB}}),
        at("/a", 512 * MB, "cgroup2:memory.high"),
    ),
    Case(
        "memory.high above memory.max",
        v2("/", {"": {"memory.max": 512 * MB, "memory.high": 1 * GB}}),
        at("", 512 * MB),
    ),
    Case(
        "memory.high of the parent below memory.max of the leaf",
        v2("/a/b", {"/a/b": maximum(1 * GB), "/a": {"memory.high": 700 * MB}}),
        at("/a", 700 * MB, "cgroup2:memory.high"),
    ),
    Case(
        "exactly physical memory does not bind",
        v2("/", {"": {**maximum(16 * GB), "memory.current": 15 * GB}}),
        NOTHING,
    ),
    Case(
        "one page below physical memory binds",
        v2("/", {"": maximum(16 * GB - 4096)}),
        at("", 16 * GB - 4096),
    ),
    Case(
        "zero is a limit: the kernel takes it",
        v2("/", {"": maximum(0)}),
        {**at("", 0), "memory_available": 0, "notes": ["approximate"]},
    ),
    Case(
        "largest number of 64 bits does not bind",
        v2("/", {"": maximum(2**64 - 1)}),
        NOTHING,
    ),
    Case(
        "blanks around the number",
        v2("/", {"": maximum("  536870912  ")}),
        {**at("", 512 * MB), "notes": []},
    ),
    Case(
        "protections, swap and zswap never limit",
        v2(
            "/",
            {
                "": {
                    "memory.max": "max",
                    "memory.low": 1,
                    "memory.min": 1,
                    "memory.swap.max": 1,
                    "memory.swap.high": 1,
                    "memory.zswap.max": 1,
                    "cpu.weight": 1,
                    "cpu.weight.nice": 19,
                    "cpu.max.burst": 1,
                    "cpu.uclamp.max": "1.00",
                    "cpu.idle": 1,
                }
            },
        ),
        NOTHING,
    ),
]

MALFORMED: list[tuple[str, Mapping[str, object]]] = [
    ("memory.max", {"memory.max": "512M"}),
    ("memory.max", {"memory.max": "5.0"}),
    ("memory.max", {"memory.max": "0x20000000"}),
    ("memory.max", {"memory.max": "+536870912"}),
    ("memory.max", {"memory.max": "1_000_000"}),
    ("memory.max", {"memory.max": "536870912 536870912"}),
    ("memory.max", {"memory.max": "٥٣٦٨٧٠٩١٢"}),
    ("memory.max", {"memory.max": "1" * 5000}),
    ("memory.max", {"memory.max": "MAX"}),
    ("memory.high", {"memory.high": "none"}),
    ("cpu.max", {"cpu.max": "-1 100000"}),
    ("cpu.max", {"cpu.max": "500ms 100000"}),
    ("cpu.max", {"cpu.max": "1e5 100000"}),
    ("cpu.max", {"cpu.max": "150000 max"}),
    ("cpu.max", {"cpu.max": "150000 -100000"}),
    ("cpu.max", {"cpu.max": "150000,100000"}),
    ("cpu.max", {"cpu.max": "²00000 100000"}),
    ("cpu.max", {"cpu.max": "\0"}),
]

V2_CPU = [
    Case(
        "quota without a period: the kernel's default",
        v2("/", {"": {"cpu.max": "150000"}}),
        {"cpus": 1.5, "cpu_source": "cgroup2:cpu.max", "notes": []},
    ),
    Case(
        "systemd: CPUQuotaPeriodSec=10ms CPUQuota=20%",
        v2("/", {"": {"cpu.max": "2000 10000"}}),
        {"cpus": 0.2, "workers_by_cpu": 1},
    ),
    Case(
        "exactly the CPUs of the host: host is named",
        v2("/", {"": {"cpu.max": "800000 100000"}}),
        {**HOST_CPUS, "workers_by_cpu": 17},
    ),
    Case(
        "quota below affinity below host",
        v2("/", {"": {"cpu.max": "150000 100000"}}),
        {"cpus": 1.5, "cpu_source": "cgroup2:cpu.max"},
        host=dataclasses.replace(HOST, affinity=2),
    ),
    Case(
        "affinity equal to the quota: affinity is named",
        v2("/", {"": {"cpu.max": "200000 100000"}}),
        {"cpus": 2.0, "cpu_source": "affinity", "cpu_at": None},
        host=dataclasses.replace(HOST, affinity=2),
    ),
    Case(
        "affinity unknown",
        v2("/", {}),
        HOST_CPUS,
        host=dataclasses.replace(HOST, affinity=None),
    ),
    Case(
        "affinity above the CPUs that are online",
        v2("/", {}),
        HOST_CPUS,
        host=dataclasses.replace(HOST, affinity=64),
    ),
]

V1 = [
    Case(
        "v1: memory limit of a visible parent, repeated by the leaf: the parent is named",
        v1(
            "/a/b",
            {
                "/a/b": {
                    "memory.limit_in_bytes": V1_UNLIMITED,
                    "memory.stat": f"cache 1\nhierarchical_memory_limit {256 * MB}",
                },
                "/a": {
                    "memory.limit_in_bytes": 256 * MB,
                    "memory.stat": f"hierarchical_memory_limit {256 * MB}",
                },
            },
        ),
        {**at("/memory/a", 256 * MB, V1_OWN), "notes": []},
    ),
    Case(
        "v1: own limit below the inherited one",
        v1(
            "/a",
            {
                "/a": {
                    "memory.limit_in_bytes": 256 * MB,
                    "memory.stat": f"hierarchical_memory_limit {512 * MB}",
                }
            },
        ),
        at("/memory/a", 256 * MB, V1_OWN),
    ),
    Case(
        "v1: soft limit, swap, kernel and tcp memory never limit",
        v1(
            "/",
            {
                "": {
                    "memory.limit_in_bytes": V1_UNLIMITED,
                    "memory.soft_limit_in_bytes": 1,
                    "memory.memsw.limit_in_bytes": 1,
                    "memory.kmem.limit_in_bytes": 1,
                    "memory.kmem.tcp.limit_in_bytes": 1,
                    "memory.stat": f"hierarchical_memory_limit {V1_UNLIMITED}\n"
                    "hierarchical_memsw_limit 1",
                }
            },
            {"": {**cfs(-1), "cpu.shares": 2, "cpu.rt_runtime_us": 1, "cpu.cfs_burst_us": 1}},
        ),
        NOTHING,
    ),
    Case(
        "v1: malformed hierarchical limit",
        v1(
            "/",
            {
                "": {
                    "memory.limit_in_bytes": 512 * MB,
                    "memory.stat": "hierarchical_memory_limit much",
                }
            },
        ),
        {**at("/memory", 512 * MB, V1_OWN), "notes": ["malformed"]},
    ),
    Case(
        "v1: other lines of memory.stat may be anything",
        v1("/", {"": {"memory.limit_in_bytes": 512 * MB, "memory.stat": "cache\n\nrss x y\n \n"}}),
        {"memory_limit": 512 * MB, "notes": []},
    ),
    Case(
        "v1: negative memory limit",
        v1("/", {"": {"memory.limit_in_bytes": -1}}),
        {**HOST_MEMORY, "notes": ["malformed"]},
    ),
    Case("v1: quota of -1", v1("/", cpu={"": cfs(-1)}), NOTHING),
    Case(
        "v1: quota without a period file",
        v1("/", cpu={"": {"cpu.cfs_quota_us": 150_000}}),
        {"cpus": 1.5, "notes": ["approximate"]},
    ),
    Case("v1: period without a quota file", v1("/", cpu={"": {"cpu.cfs_period_us": 1}}), NOTHING),
    Case(
        "v1: period not a number",
        v1("/", cpu={"": cfs(150_000, "100ms")}),
        {**HOST_CPUS, "notes": ["malformed"]},
    ),
    Case("v1: empty quota file", v1("/", cpu={"": cfs("")}), NOTHING),
    Case(
        "v1: period may not be read",
        v1("/", cpu={"": {"cpu.cfs_quota_us": 150_000}}),
        {"cpus": 1.5, "notes": ["approximate", "unreadable"]},
        unreadable=[f"{ROOT}/cpu,cpuacct/cpu.cfs_period_us"],
    ),
    Case(
        "v1: a malformed leaf does not hide its parent",
        v1("/a/b", cpu={"/a/b": cfs("many"), "/a": cfs(100_000)}),
        {"cpus": 1.0, "cpu_at": f"{ROOT}/cpu,cpuacct/a", "notes": ["malformed"]},
    ),
    Case(
        "v1: the controllers have different groups",
        {
            **v1("/unused", {"/m": {"memory.limit_in_bytes": 1 * GB}}, {"/c": cfs(150_000)}),
            "/proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/c\n",
        },
        {**at("/memory/m", 1 * GB, V1_OWN), "cpus": 1.5, "cpu_at": f"{ROOT}/cpu,cpuacct/c"},
    ),
    Case(
        "v1: Docker, process in a child of the container's group",
        v1(
            "/docker/0ab1/worker",
            {"": {"memory.limit_in_bytes": 1 * GB}, "/worker": {"memory.limit_in_bytes": 2 * GB}},
            {"": cfs(150_000)},
            root="/docker/0ab1",
        ),
        {**at("/memory", 1 * GB, V1_OWN), "cpus": 1.5, "notes": []},
    ),
    Case(
        "v1: the group's name begins like the mounted one's",
        v1("/docker/0ab1", {"": {"memory.limit_in_bytes": 1 * GB}}, root="/docker/0a"),
        {**at("/memory", 1 * GB, V1_OWN), "notes": ["approximate"]},
    ),
    Case(
        "gVisor: limits without a word on ancestors, mounted from 'none'",
        {
            "/proc/self/cgroup": "3:memory:/\n2:cpu:/\n1:job:/\n",
            "/proc/self/mountinfo": "1 0 0:1 / / rw - 9p none rw,trans=fd\n"
            "6 5 0:6 / /sys/fs/cgroup rw - tmpfs none rw,mode=0755\n"
            "7 6 0:7 / /sys/fs/cgroup/memory rw - cgroup none rw,memory\n"
            "8 6 0:8 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu\n",
            **texts(
                {
                    f"{ROOT}/memory": {
                        "memory.limit_in_bytes": 9223372036854775807,
                        "memory.usage_in_bytes": 100 * MB,
                    },
                    f"{ROOT}/cpu": cfs(-1),
                }
            ),
        },
        NOTHING,
    ),
]

HYBRID = [
    Case(
        "memory by version 2, CPU by version 1",
        {
            "/proc/self/cgroup": "2:cpu,cpuacct:/c\n0::/u\n",
            "/proc/self/mountinfo": mount(f"{ROOT}/unified")
            + mount(f"{ROOT}/cpu,cpuacct", "cpu,cpuacct"),
            f"{ROOT}/unified/u/memory.max": "536870912\n",
            f"{ROOT}/unified/u/cpu.max": "10000 100000\n",
            **texts({f"{ROOT}/cpu,cpuacct/c": cfs(150_000)}),
        },
        {
            **at("/unified/u", 512 * MB),
            "cpus": 1.5,
            "cpu_source": "cgroup1:cpu.cfs_quota_us",
            "notes": [],
        },
    ),
    Case(
        "CPU by version 2, memory by version 1",
        {
            "/proc/self/cgroup": "0::/u\n2:memory:/m\n",
            "/proc/self/mountinfo": mount(f"{ROOT}/memory", "memory") + mount(f"{ROOT}/unified"),
            f"{ROOT}/unified/u/memory.max": "1\n",
            f"{ROOT}/unified/u/cpu.max": "150000 100000\n",
            f"{ROOT}/memory/m/memory.limit_in_bytes": "536870912\n",
        },
        {
            **at("/memory/m", 512 * MB, V1_OWN),
            "cpus": 1.5,
            "cpu_source": "cgroup2:cpu.max",
            "notes": [],
        },
    ),
    Case(
        "version 1 has the controller, but is mounted nowhere",
        {
            "/proc/self/cgroup": "2:memory:/m\n0::/u\n",
            "/proc/self/mountinfo": mount(f"{ROOT}/unified"),
            f"{ROOT}/unified/u/memory.max": "1\n",
        },
        NOTHING,
    ),
    Case(
        "version 2 has the controllers, but is mounted nowhere",
        {"/proc/self/cgroup": "0::/u\n", "/proc/self/mountinfo": OTHER_MOUNTS},
        NOTHING,
    ),
]

LOCATE = [
    Case(
        "blank in the mount point, escaped by mountinfo",
        {
            **v2("/a", {}, mount("/mnt/control\\040groups")),
            "/mnt/control groups/a/memory.max": "536870912\n",
        },
        {"memory_limit": 512 * MB, "memory_at": "/mnt/control groups/a", "notes": []},
    ),
    Case(
        "an escaped backslash before digits is not a blank",
        {**v2("/a", {}, mount("/mnt/x\\134040y")), "/mnt/x\\040y/a/memory.max": "536870912\n"},
        {"memory_limit": 512 * MB, "notes": []},
    ),
    Case(
        "blank in the group's name: escaped in mountinfo, not in /proc/self/cgroup",
        v2("/my app/w", {"/w": maximum(1 * GB)}, mount(ROOT, root="/my\\040app")),
        {**at("/w", 1 * GB), "notes": []},
    ),
    Case(
        "a name that holds what Python takes for the end of a line",
        v2("/a\x85b\u2028c", {"/a\x85b\u2028c": maximum(1 * GB)}),
        {"memory_limit": 1 * GB, "notes": []},
    ),
    *(
        Case(
            f"optional fields of mountinfo: {optional!r}",
            v2("/a", {"/a": maximum(1 * GB)}, mount(ROOT, optional=optional)),
            {**at("/a", 1 * GB), "notes": []},
        )
        for optional in ("", "shared:7 master:3 propagate_from:2 unbindable ", "new-tag ")
    ),
    Case(
        "sibling whose name begins like the mounted group's",
        v2("/a/bc", {"": maximum(1 * GB), "/c": maximum(1)}, mount(ROOT, root="/a/b")),
        {**at("", 1 * GB), "notes": ["approximate"]},
    ),
    Case(
        "bind-mounted group, process two levels below",
        v2(
            "/pod/app/web/1",
            {"/web/1": maximum(3 * GB), "/web": maximum(1 * GB), "": maximum(2 * GB)},
            mount(ROOT, root="/pod/app"),
        ),
        {**at("/web", 1 * GB), "notes": []},
    ),
    Case(
        "two cgroup2 mounts, the other one first and of another root",
        v2(
            "/pod/app",
            {"": maximum(1 * GB)},
            mount("/mnt/other", root="/pod/other"),
            mount(ROOT, root="/pod/app"),
        ),
        {**at("", 1 * GB), "notes": []},
    ),
    Case(
        "two cgroup2 mounts: only the one that is not at the usual place has the group",
        {
            **v2("/app", {"": maximum(1)}, mount(ROOT, root="/other"), mount("/cg", root="/")),
            "/cg/app/memory.max": "536870912\n",
        },
        {"memory_limit": 512 * MB, "memory_at": "/cg/app", "notes": []},
    ),
    Case(
        "a later mount at the same point hides the earlier one (unshare -C, mount)",
        v2("/app/w", {"/w": maximum(1 * GB)}, mount(ROOT, root="/"), mount(ROOT, root="/app")),
        {**at("/w", 1 * GB), "notes": []},
    ),
    Case(
        "only the host's hierarchy is mounted, from above the namespace",
        {**v2("/", {}, mount("/host", root="/../..")), "/host/memory.max": "1073741824\n"},
        {"memory_limit": 1 * GB, "memory_at": "/host", "notes": ["approximate"]},
    ),
    Case(
        "a mount point that only begins like the usual one",
        {
            **v2("/a", {"/a": maximum(1 * GB)}, mount(f"{ROOT}-old"), mount(ROOT)),
            f"{ROOT}-old/a/memory.max": "1\n",
        },
        at("/a", 1 * GB),
    ),
    Case(
        "/proc/self/cgroup may not be read",
        {"/proc/self/mountinfo": PRIVATE, f"{ROOT}/memory.max": "1073741824\n"},
        {**at("", 1 * GB), "notes": ["approximate", "unreadable"]},
        unreadable=["/proc/self/cgroup"],
    ),
    Case(
        "/proc/self/cgroup missing, version 1 mounted",
        {
            "/proc/self/mountinfo": mount(f"{ROOT}/memory", "memory"),
            f"{ROOT}/memory/memory.limit_in_bytes": "1073741824\n",
        },
        {**at("/memory", 1 * GB, V1_OWN), **HOST_CPUS, "notes": ["approximate"]},
    ),
    Case(
        "/proc/self/cgroup empty",
        {
            "/proc/self/cgroup": "",
            "/proc/self/mountinfo": PRIVATE,
            f"{ROOT}/memory.max": "1073741824\n",
        },
        {**at("", 1 * GB), "notes": ["approximate"]},
    ),
    Case(
        "mountinfo may not be read, default mount point present",
        {"/proc/self/cgroup": "0::/a\n", f"{ROOT}/a/memory.max": "1073741824\n"},
        {**at("/a", 1 * GB), "notes": ["approximate", "unreadable"]},
        unreadable=["/proc/self/mountinfo"],
    ),
    Case(
        "mountinfo missing, version 1 at its default places",
        {
            "/proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n",
            f"{ROOT}/memory/a/memory.limit_in_bytes": "1073741824\n",
            **texts({f"{ROOT}/cpu,cpuacct/a": cfs(150_000)}),
        },
        {**at("/memory/a", 1 * GB, V1_OWN), "cpus": 1.5, "notes": ["approximate"]},
    ),
    Case(
        "mountinfo missing on a hybrid system",
        {
            "/proc/self/cgroup": "4:memory:/a\n0::/u\n",
            f"{ROOT}/memory/a/memory.limit_in_bytes": "1073741824\n",
            f"{ROOT}/unified/u/cpu.max": "150000 100000\n",
        },
        {**at("/memory/a", 1 * GB, V1_OWN), "cpus": 1.5, "notes": ["approximate"]},
    ),
    Case(
        "no line of mountinfo can be understood",
        v2("/", {"": maximum(1)}, "garbage\n", "1 2 3 - cgroup2\n"),
        {**NOTHING, "notes": ["malformed"]},
    ),
    Case(
        "the line of version 2 cannot be understood, another one can",
        {**v2("/", {"": maximum(1 * GB)}), "/proc/self/cgroup": "1:name=systemd:/a\n0::a\n"},
        {**at("", 1 * GB), "notes": ["approximate", "malformed"]},
    ),
    Case(
        "a path that does not begin with a slash",
        {**v2("/", {"": maximum(1 * GB)}), "/proc/self/cgroup": "0::a\n"},
        {**at("", 1 * GB), "notes": ["approximate", "malformed"]},
    ),
    Case(
        "the end of a line in the mount point, escaped by mountinfo",
        {**v2("/a/b", {}, mount("/x\\012y", root="/c")), "/x\ny/memory.max": "1073741824\n"},
        {"memory_limit": 1 * GB, "notes": ["approximate"]},
    ),
    Case(
        "everything may not be read",
        v2("/a", {}),
        {**NOTHING, "notes": ["unreadable"]},
        unreadable=[
            f"{ROOT}{folder}/{name}"
            for folder in ("/a", "")
            for name in ("memory.max", "memory.high", "cpu.max")
        ],
    ),
    Case(
        "memory.max may not be read, memory.high may",
        v2("/a", {"/a": {"memory.high": 1 * GB}}),
        {**at("/a", 1 * GB, "cgroup2:memory.high"), "notes": ["unreadable"]},
        unreadable=[f"{ROOT}/a/memory.max"],
    ),
]

AVAILABLE = [
    Case(
        "inactive_file above usage: nothing is used",
        v2(
            "/",
            {
                "": {
                    **maximum(1 * GB),
                    "memory.current": 100 * MB,
                    "memory.stat": f"inactive_file {300 * MB}",
                }
            },
        ),
        {"memory_available": 1 * GB},
    ),
    Case(
        "the parent's memory is used by siblings",
        v2(
            "/a/b",
            {
                "/a/b": {**maximum(1 * GB), "memory.current": 100 * MB},
                "/a": {
                    **maximum(2 * GB),
                    "memory.current": 1948 * MB,
                    "memory.stat": "inactive_file 0",
                },
            },
        ),
        {**at("/a/b", 1 * GB), "memory_available": 100 * MB},
    ),
    Case(
        "memory.high counts for what is available too",
        v2(
            "/",
            {
                "": {
                    "memory.max": 1 * GB,
                    "memory.high": 512 * MB,
                    "memory.current": 212 * MB,
                    "memory.stat": "inactive_file 0",
                }
            },
        ),
        {"memory_limit": 512 * MB, "memory_available": 300 * MB},
    ),
    Case(
        "usage missing: all of the limit",
        v2("/", {"": maximum(1 * GB)}),
        {"memory_available": 1 * GB, "notes": []},
    ),
    Case(
        "usage may not be read: all of the limit, with a note",
        v2("/", {"": maximum(1 * GB)}),
        {"memory_available": 1 * GB, "notes": ["unreadable"]},
        unreadable=[f"{ROOT}/memory.current"],
    ),
    Case(
        "usage malformed",
        v2("/", {"": {**maximum(1 * GB), "memory.current": "much"}}),
        {"memory_available": 1 * GB, "notes": ["malformed"]},
    ),
    Case(
        "inactive_file malformed: only the rest is page cache",
        v2(
            "/",
            {
                "": {
                    **maximum(1 * GB),
                    "memory.current": 600 * MB,
                    "memory.stat": f"anon 1\ninactive_file -3\nactive_file {2 * MB}",
                }
            },
        ),
        {"memory_available": 426 * MB, "notes": ["malformed"]},
    ),
    Case(
        "inactive_anon is no page cache",
        v2(
            "/",
            {
                "": {
                    **maximum(1 * GB),
                    "memory.current": 600 * MB,
                    "memory.stat": f"inactive_anon {500 * MB}\nactive_file {50 * MB}\n"
                    f"slab_reclaimable {40 * MB}\ninactive_file {10 * MB}",
                }
            },
        ),
        {"memory_available": 484 * MB},
    ),
    Case(
        "usage of a group whose limit does not bind is not compared with the host",
        v2("/a", {"/a": {**maximum(64 * GB), "memory.current": 63 * GB}}),
        NOTHING,
    ),
    Case(
        "v1: an inherited limit less this group's usage",
        v1(
            "/docker/x",
            {
                "": {
                    "memory.limit_in_bytes": V1_UNLIMITED,
                    "memory.usage_in_bytes": 50 * MB,
                    "memory.stat": f"hierarchical_memory_limit {100 * MB}\n"
                    f"inactive_file {9 * MB}\ntotal_inactive_file {10 * MB}",
                }
            },
            root="/docker/x",
        ),
        {**at("/memory", 100 * MB, V1_INHERITED), "memory_available": 60 * MB},
    ),
    Case(
        "v1: the parent's memory is used by siblings",
        v1(
            "/a/b",
            {
                "/a/b": {"memory.limit_in_bytes": 1 * GB, "memory.usage_in_bytes": 1 * MB},
                "/a": {"memory.limit_in_bytes": 2 * GB, "memory.usage_in_bytes": 2 * GB},
            },
        ),
        {**at("/memory/a/b", 1 * GB, V1_OWN), "memory_available": 0},
    ),
    Case(
        "lxcfs: what the host reports is the container already, its group is tighter",
        v2(
            "/app",
            {"/app": {**maximum(512 * MB), "memory.current": 112 * MB}, "": maximum(2 * GB)},
        ),
        {**at("/app", 512 * MB), "memory_available": 400 * MB, "cpus": 2.0},
        host=HostFacts(2, 2, 2 * GB, 1 * GB, "linux"),
    ),
]

SYSTEMD = [
    Case(
        "service without limits of its own in a slice with both",
        v2(
            "/shop.slice/shop-web.slice/lms.service",
            {
                "/shop.slice": {"memory.high": 3 * GB, "memory.max": 4 * GB},
                "/shop.slice/shop-web.slice": {"memory.max": "max", "cpu.max": "250000 100000"},
                "/shop.slice/shop-web.slice/lms.service": {
                    "memory.max": "max",
                    "memory.high": "max",
                    "cpu.max": "max 100000",
                },
            },
        ),
        {
            **at("/shop.slice", 3 * GB, "cgroup2:memory.high"),
            "cpus": 2.5,
            "cpu_at": f"{ROOT}/shop.slice/shop-web.slice",
            "workers_by_cpu": 6,
            "notes": [],
        },
    ),
    Case(
        "MemoryHigh=256M MemoryMax=512M CPUQuota=150%",
        v2(
            "/system.slice/lms.service",
            {
                "/system.slice/lms.service": {
                    "memory.high": 256 * MB,
                    "memory.max": 512 * MB,
                    "cpu.max": "150000 100000",
                    "memory.current": 56 * MB,
                },
                "/system.slice": {"memory.max": "max", "cpu.max": "max 100000"},
            },
        ),
        {
            **at("/system.slice/lms.service", 256 * MB, "cgroup2:memory.high"),
            "memory_available": 200 * MB,
            "cpus": 1.5,
        },
    ),
    Case(
        "instance of a template, escaped name",
        v2(
            "/system.slice/system-lms.slice/lms@a\\x2db.service",
            {"/system.slice/system-lms.slice/lms@a\\x2db.service": maximum(1 * GB)},
        ),
        {"memory_limit": 1 * GB, "notes": []},
    ),
    Case(
        "user service below user.slice",
        v2(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/lms.service",
            {"/user.slice/user-1000.slice": {**maximum(2 * GB), "cpu.max": "100000 100000"}},
        ),
        {**at("/user.slice/user-1000.slice", 2 * GB), "cpus": 1.0},
    ),
    Case(
        "DelegateSubgroup=: process below the service's own group",
        v2(
            "/system.slice/lms.service/supervisor",
            {
                "/system.slice/lms.service": {**maximum(1 * GB), "cpu.max": "50000 100000"},
                "/system.slice/lms.service/supervisor": {"memory.max": "max"},
            },
        ),
        {**at("/system.slice/lms.service", 1 * GB), "cpus": 0.5, "workers_by_cpu": 2},
    ),
    Case(
        "hybrid: MemoryLimit= in version 1",
        {
            **v1(
                "/system.slice/lms.service",
                {"/system.slice/lms.service": {"memory.limit_in_bytes": 1 * GB}},
                {"/system.slice": cfs(100_000)},
            ),
            "/proc/self/cgroup": "4:memory:/system.slice/lms.service\n"
            "3:cpu,cpuacct:/system.slice\n1:name=systemd:/system.slice/lms.service\n"
            "0::/system.slice/lms.service\n",
        },
        {**at("/memory/system.slice/lms.service", 1 * GB, V1_OWN), "cpus": 1.0, "notes": []},
    ),
]

MORE = WALK + V2_MEMORY + V2_CPU + V1 + HYBRID + LOCATE + AVAILABLE + SYSTEMD


def case_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", GOLDEN, ids=case_name)
def test_golden_case(case: Case) -> None:
    assert case.found() == case.expect


@pytest.mark.parametrize("case", MORE, ids=case_name)
def test_case(case: Case) -> None:
    assert case.found() == case.expect


def test_golden_cases_are_many() -> None:
    """An empty file would pass."""
    assert len(GOLDEN) == 90


@pytest.mark.parametrize(("name", "files"), MALFORMED, ids=lambda value: repr(value)[:40])
def test_malformed_limit_is_skipped_with_a_note_that_names_the_file(
    name: str, files: Mapping[str, object]
) -> None:
    found = Case("", v2("/a", {"/a": files}), {}).detect()
    assert (found.memory_limit, found.cpus) == (16 * GB, 8.0)
    assert found.notes == (f"malformed: {ROOT}/a/{name}",)


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError, OSError, UnicodeDecodeError])
def test_any_error_of_a_file_is_a_note(error: type[Exception]) -> None:
    """A group that is being removed answers ENODEV; other file systems have errors of their own."""

    class Failing(FixtureFiles):
        def read_text(self, path: str) -> str:
            if path.startswith(self.failing):
                raise error(*([b"".decode(), b"", 0, 1, ""] if error is UnicodeDecodeError else []))
            return super().read_text(path)

        failing = ""

    for failing in ("/proc/self/cgroup", "/proc/self/mountinfo", f"{ROOT}/a/", "/"):
        files = Failing(v2("/a", {"/a": maximum(1 * GB)}))
        files.failing = failing
        found = detect_resources(HOST, files)
        assert f"unreadable: {failing.rstrip('/')}" in "\n".join(found.notes)


@pytest.mark.parametrize("file", ["/proc/self/cgroup", "/proc/self/mountinfo", f"{ROOT}/a"])
def test_folder_that_is_a_file_is_missing(file: str) -> None:
    class NoFolder(FixtureFiles):
        def read_text(self, path: str) -> str:
            if path.startswith(file):
                raise NotADirectoryError(path)
            return super().read_text(path)

    found = detect_resources(HOST, NoFolder(v2("/a", {"": maximum(1 * GB)})))
    assert found.memory_limit == 1 * GB
    assert "unreadable" not in "".join(found.notes)


class Forbidden:
    """Files that may not even be asked for."""

    def read_text(self, path: str) -> Never:
        raise AssertionError(path)

    def is_dir(self, path: str) -> Never:
        raise AssertionError(path)


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
@pytest.mark.parametrize(
    ("affinity", "cpus", "source"), [(None, 10, "host"), (10, 10, "host"), (4, 4, "affinity")]
)
def test_other_systems_give_their_own_figures_and_no_file_is_opened(
    platform: str, affinity: int | None, cpus: int, source: str
) -> None:
    """Windows knows affinity, macOS does not (psutil.Process.cpu_affinity)."""
    found = detect_resources(HostFacts(10, affinity, 16 * GB, 3 * GB, platform), Forbidden())
    assert (found.cpus, found.cpu_source, found.cpu_at) == (cpus, source, None)
    assert (found.memory_limit, found.memory_available) == (16 * GB, 3 * GB)
    assert (found.memory_source, found.memory_at, found.notes) == ("host", None, ())


def test_limit_that_changes_is_seen_by_the_next_detection() -> None:
    """In-place resize of a pod, docker update, systemctl set-property."""
    files = FixtureFiles(v2("/a", {"/a": {**maximum(1 * GB), "cpu.max": "100000 100000"}}))
    seen = []
    for memory, quota in ((1 * GB, "100000"), (2 * GB, "300000"), (512 * MB, "max")):
        files.texts[f"{ROOT}/a/memory.max"] = f"{memory}\n"
        files.texts[f"{ROOT}/a/cpu.max"] = f"{quota} 100000\n"
        found = detect_resources(HOST, files)
        seen.append((found.memory_limit, found.cpus))
    assert seen == [(1 * GB, 1.0), (2 * GB, 3.0), (512 * MB, 8.0)]


def test_process_that_is_moved_to_another_group_is_seen_by_the_next_detection() -> None:
    files = FixtureFiles(v2("/a", {"/a": maximum(1 * GB), "/b": maximum(2 * GB)}))
    assert detect_resources(HOST, files).memory_limit == 1 * GB
    files.texts["/proc/self/cgroup"] = "0::/b\n"
    assert detect_resources(HOST, files).memory_limit == 2 * GB


@pytest.mark.parametrize("case", GOLDEN + MORE, ids=case_name)
def test_only_what_is_needed_is_opened_and_each_file_once(case: Case) -> None:
    """Later parts read again while serving."""
    files = FixtureFiles(case.files, case.unreadable)
    detect_resources(case.host, files)
    assert len(files.opened) == len(set(files.opened))
    limiting = {
        "cgroup",
        "mountinfo",
        "cpu.max",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "memory.max",
        "memory.high",
        "memory.current",
        "memory.stat",
        "memory.limit_in_bytes",
        "memory.oom.group",
        "memory.usage_in_bytes",
        "memory.use_hierarchy",
    }
    assert {path.rpartition("/")[2] for path in files.opened} <= limiting


@pytest.mark.parametrize("case", GOLDEN + MORE, ids=case_name)
def test_note_names_the_file_or_folder_on_one_line(case: Case) -> None:
    for note in case.detect().notes:
        kind, _, detail = note.partition(": ")
        assert kind in ("unreadable", "malformed", "approximate")
        assert detail.startswith("/")
        assert len(note.splitlines()) == 1

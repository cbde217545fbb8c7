"""Machines for hypothesis: such as exist, and such as cannot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from flask_workersize import HostFacts
from tests.resources.machines import GB, MB, ROOT, V1_UNLIMITED, cfs, mount, texts

Quota = tuple[int, int]
"""Quota and period of a group, in microseconds."""

hosts = st.builds(
    HostFacts,
    cpus=st.integers(1, 256),
    affinity=st.none() | st.integers(1, 256),
    memory_total=st.integers(64 * MB, 64 * GB) | st.just(16 * GB),
    memory_available=st.integers(0, 64 * GB) | st.just(12 * GB),
    platform=st.just("linux"),
)


@dataclass(frozen=True)
class Group:
    """One control group; ``None`` is no limit.

    :param high: of version 2 only
    :param usage: of its own processes; what the files say is with those of the groups below
    :param cache: page cache, part of usage
    """

    max: int | None = None
    high: int | None = None
    usage: int = 0
    cache: int = 0
    quota: Quota | None = None


@dataclass(frozen=True)
class Machine:
    """A process in a chain of groups.

    :param groups: the topmost first, the leaf last
    :param hidden: how many of the topmost are above what is mounted
    :param memory_is_v2: version that has the controller
    :param cpu_is_v2: likewise
    """

    groups: tuple[Group, ...]
    hidden: int
    memory_is_v2: bool
    cpu_is_v2: bool
    host: HostFacts = field(default=HostFacts(8, None, 16 * GB, 12 * GB, "linux"))

    @property
    def visible(self) -> tuple[Group, ...]:
        """The groups that are mounted, the topmost first."""
        return self.groups[self.hidden :]

    @property
    def files(self) -> dict[str, str]:
        """The files of the machine, as the kernel writes them."""
        names = [f"g{depth}" for depth in range(len(self.groups))]
        path, root = "/" + "/".join(names[1:]), "/" + "/".join(names[1 : self.hidden + 1])
        points = {
            "memory": ROOT if self.memory_is_v2 else f"{ROOT}/memory",
            "cpu": ROOT if self.cpu_is_v2 else f"{ROOT}/cpu",
        }
        if self.memory_is_v2 != self.cpu_is_v2:
            points = {name: point.replace(ROOT, f"{ROOT}/{name}") for name, point in points.items()}
        memory, cpu = points["memory"], points["cpu"]
        v1 = [
            name for name, v2 in (("memory", self.memory_is_v2), ("cpu", self.cpu_is_v2)) if not v2
        ]
        files = {
            "/proc/self/cgroup": "".join(f"{n}:{name}:{path}\n" for n, name in enumerate(v1, 1))
            + f"0::{path}\n",
            "/proc/self/mountinfo": "".join(mount(points[name], name, root) for name in v1)
            + "".join(
                mount(point, "", root) for point in {*points.values()} - {*map(points.get, v1)}
            ),
        }
        below = ""
        for depth, group in enumerate(self.visible):
            below += f"/{names[self.hidden + depth]}" if depth else ""
            files |= texts({memory + below: self._memory(group, self.hidden + depth)})
            files |= texts({cpu + below: self._cpu(group)})
        return files

    def usage(self, depth: int) -> tuple[int, int]:
        """Return usage and page cache of a group and all below it, as the kernel counts."""
        below = self.groups[depth:]
        return sum(group.usage for group in below), sum(group.cache for group in below)

    def _memory(self, group: Group, depth: int) -> dict[str, object]:
        usage, cache = self.usage(depth)
        active = cache // 3
        stat = f"anon 1\ninactive_file {cache - active}\nactive_file {active}"
        if self.memory_is_v2:
            return {
                "memory.max": "max" if group.max is None else group.max,
                "memory.high": "max" if group.high is None else group.high,
                "memory.current": usage,
                "memory.stat": stat,
            }
        limits = [other.max for other in self.groups[: depth + 1] if other.max is not None]
        return {
            "memory.limit_in_bytes": V1_UNLIMITED if group.max is None else group.max,
            "memory.usage_in_bytes": usage,
            "memory.stat": f"inactive_file 3\nhierarchical_memory_limit "
            f"{min(limits, default=V1_UNLIMITED)}\ntotal_inactive_file {cache - active}\n"
            f"total_active_file {active}",
        }

    def _cpu(self, group: Group) -> dict[str, object]:
        if self.cpu_is_v2:
            quota = group.quota or ("max", 100_000)
            return {"cpu.max": f"{quota[0]} {quota[1]}", "cpu.weight": 1}
        return cfs(*group.quota) if group.quota else cfs(-1)

    def with_group(self, index: int, **changes: object) -> Machine:
        """Return the machine with another group at an index."""
        changed = replace(self.groups[index], **changes)  # type: ignore[arg-type]
        groups = (*self.groups[:index], changed, *self.groups[index + 1 :])
        return replace(self, groups=groups)


sizes = st.integers(0, 32 * GB) | st.sampled_from([512 * MB, 1 * GB, 4 * GB, 8 * GB])
limits = st.none() | st.none() | sizes
quotas = st.tuples(st.integers(1_000, 10_000_000), st.integers(1_000, 1_000_000))


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw a group."""
    usage = draw(st.integers(0, 100 * MB) | sizes)
    return Group(
        max=draw(limits),
        high=draw(limits),
        usage=usage,
        cache=draw(st.integers(0, usage)),
        quota=draw(st.none() | quotas),
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Draw a machine such as exists: version 1, 2 or both, the process 0 to 4 groups deep."""
    chain = tuple(draw(st.lists(groups(), min_size=1, max_size=5)))
    return Machine(
        groups=chain,
        hidden=draw(st.integers(0, len(chain) - 1)),
        memory_is_v2=draw(st.booleans()),
        cpu_is_v2=draw(st.booleans()),
        host=draw(hosts),
    )


NUMBERS = ["0", "1", "-1", "max", "100000", "536870912", str(V1_UNLIMITED), str(2**64), "9" * 4400]
PIECES = [
    *NUMBERS,
    *("/", "/a", "/a/b", "/ab", "/..", "..", "//", ROOT, f"{ROOT}/memory", f"{ROOT}/cpu"),
    *("cgroup", "cgroup2", " - ", "rw,memory", "rw,cpu", "memory", "cpu", "name=systemd"),
    *("hierarchical_memory_limit", "inactive_file", "total_active_file", "30 21 0:30 "),
    *("0::", "4:memory:", "3:cpu,cpuacct:", ":", ",", " ", "\t", "\n", "\n", "\\040", "\\012"),
    *("\0", "\\000", "\x85", "\u2028", "é", "٣", "\ud800"),
]
garbage = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)

MEMBERSHIPS = ["0::/\n", "0::/a/b\n", "4:memory:/a\n3:cpu,cpuacct:/a\n0::/b\n", "1:cpu:/../x\n"]
MOUNTS = [
    mount(ROOT),
    mount(ROOT, root="/a"),
    mount(f"{ROOT}/memory", "memory") + mount(f"{ROOT}/cpu", "cpu,cpuacct") + mount(ROOT),
]
LIMIT_FILES = [
    "cpu.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "memory.max",
    "memory.high",
    "memory.current",
    "memory.stat",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
]
FOLDERS = [f"{point}{below}" for point in (ROOT, f"{ROOT}/memory") for below in ("", "/a", "/a/b")]
FOLDERS += [f"{ROOT}/cpu", f"{ROOT}/cpu/a"]
PATHS = [f"{folder}/{name}" for folder in FOLDERS for name in LIMIT_FILES]

limit_texts = st.sampled_from(NUMBERS).map(lambda number: f"{number}\n") | garbage
garbage_files = st.builds(
    lambda memberships, mounts, limits: {
        "/proc/self/cgroup": memberships,
        "/proc/self/mountinfo": mounts,
        **limits,
    },
    st.sampled_from(MEMBERSHIPS) | garbage,
    st.sampled_from(MOUNTS) | garbage,
    st.dictionaries(st.sampled_from(PATHS), limit_texts, max_size=12),
)
"""Files of which each may hold anything."""

unreadables = st.sets(
    st.sampled_from([*PATHS, "/proc/self/cgroup", "/proc/self/mountinfo"]), max_size=4
)

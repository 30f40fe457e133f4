"""The policy that was asked for: found, compiled once, and loaded for any number of groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError, UsageError
from reuseport_tool.group import layout
from reuseport_tool.kernel import bpf, flow_map, program
from reuseport_tool.kernel.program import AttachType, ProgramType
from reuseport_tool.models import FlowMode, Policy
from reuseport_tool.record import record

_NAME_MAX = 15  # BPF_OBJ_NAME_LEN - 1
_FLOWS = {"FLOWS": 1, "UNIT_SHIFT": flow_map.UNIT_SHIFT}
_FLOW_DEFINES = {FlowMode.NONE: {}, FlowMode.ADDRESS: _FLOWS, FlowMode.QUIC: {**_FLOWS, "QUIC": 1}}


@record
class FlowChoice:
    """Whether UDP groups shall keep flows, and how many can be recorded."""

    mode: FlowMode
    entries: int = flow_map.ENTRIES


def check_source(source: Path | None) -> None:
    """Raises UsageError when there is no such file."""
    if source is not None and not source.is_file():
        raise UsageError(
            f"no such file: {source}", hint="--program takes the path of a C file; CONTRIBUTING.md has an example"
        )


class ChosenPolicy(Closing):
    """The policy that was asked for, compiled once for any number of groups. A context manager.

    It can migrate where the kernel can (SELECT_OR_MIGRATE, Linux 5.14).

    Args:
        policy, source: a policy of ours, or the C file of one's own. Neither keeps what a group has, and
            means `hash` where it has none.
        flows: None keeps what a group has, and means none where it has no program.
    """

    def __init__(self, policy: Policy | None, source: Path | None, flows: FlowChoice | None = None) -> None:
        self._policy = policy
        self._source = source
        self._flows = flows
        self._path = source or program.bpf_dir() / "policy" / f"{(policy or Policy.HASH).value.replace('-', '_')}.c"
        self._modules: dict[tuple[bool, FlowMode], program.Module] = {}
        self._spare: tuple[ExitStack, dict[str, bpf.Map], bpf.Program] | None = None

    def keeps(self, present: str | None, flows: FlowMode = FlowMode.NONE) -> bool:
        """Whether a group with this policy (None for one that is not ours) and these flows has what was asked for."""
        return self._source is None and self._policy in (None, present) and not self.changes_flows(flows)

    def changes_flows(self, present: FlowMode) -> bool:
        """Whether a group is to keep flows from now on, or to keep them no more."""
        return self._flows is not None and self._flows.mode is not present

    @property
    def flow_mode(self) -> FlowMode:
        """What a group is to keep that keeps nothing yet."""
        return FlowMode.NONE if self._flows is None else self._flows.mode

    @property
    def flow_entries(self) -> int:
        """How many flows a group that is to keep them can record; 0 where none are asked for."""
        return 0 if self.flow_mode is FlowMode.NONE or self._flows is None else self._flows.entries

    def following(self, present: str) -> ChosenPolicy:
        """What to load over a group with this policy, where only its flows are to change."""
        if self._source is not None or self._policy is not None or present not in tuple(Policy):
            return self
        return ChosenPolicy(Policy(present), None, self._flows)

    def prepare(self) -> None:
        """Load it now for the next group that has none, so that fresh() has nothing to compile or to verify.

        Raises what load() raises.
        """
        if self._spare is None:
            with ExitStack() as stack:
                maps, loaded = self._load_fresh(stack)
                self._spare = stack.pop_all(), maps, loaded

    def fresh(self, stack: ExitStack) -> tuple[dict[str, bpf.Map], bpf.Program]:
        """It over maps of its own; `stack` closes them unless its caller pops it. Raises what load() raises."""
        if self._spare is None:
            return self._load_fresh(stack)
        (opened, maps, loaded), self._spare = self._spare, None
        stack.push(opened)
        return maps, loaded

    def _load_fresh(self, stack: ExitStack) -> tuple[dict[str, bpf.Map], bpf.Program]:
        maps = layout.new_maps(stack, self.flow_mode, self.flow_entries)
        return maps, stack.enter_context(self.load(layout.link(maps)))

    def load(self, maps: Mapping[str, int]) -> bpf.Program:
        """Load it over the maps that layout.link() names.

        Raises:
            UsageError: the name of `source` cannot name a program.
            ProgramRejected, MissingCapability, Unsupported: from compiling and loading.
        """
        try:
            return self._load(True, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE, maps)
        except ToolError:
            if can_migrate():
                raise
        return self._load(False, AttachType.SK_REUSEPORT_SELECT, maps)

    def _load(self, migrating: bool, attach_type: AttachType, maps: Mapping[str, int]) -> bpf.Program:
        module = self._module(migrating, _mode(maps))
        return module.load(self._path.stem, ProgramType.SK_REUSEPORT, attach_type, maps)

    def _module(self, migrating: bool, flows: FlowMode) -> program.Module:
        wanted = migrating, flows
        if wanted not in self._modules:
            if self._source is not None:
                _check_name(self._source)
            source = policy_source(self._path, migrating, self._source is None, flows)
            self._modules[wanted] = program.Module(source)
        return self._modules[wanted]

    def close(self) -> None:
        """Forget the compiled code; what was loaded of it lives on, but for what no group took."""
        if self._spare is not None:
            self._spare[0].close()
        while self._modules:
            self._modules.popitem()[1].close()


def policy_source(
    path: Path, migrating: bool = True, is_ours: bool = True, flows: FlowMode = FlowMode.NONE
) -> program.Source:
    """What a policy is compiled from."""
    defines = {**layout.DEFINES, **({"MIGRATE": 1} if migrating else {}), **_FLOW_DEFINES[flows]}
    maps = (*layout.MAPS, *layout.FLOW_MAPS[flows])
    return program.Source(path=path, defines=defines, maps=maps, is_ours=is_ours)


def _mode(maps: Collection[str]) -> FlowMode:
    """What a program keeps that is loaded over the maps with these constants."""
    return next(mode for mode in reversed(FlowMode) if set(layout.FLOW_MAPS[mode]) <= set(maps))


def _check_name(source: Path) -> None:
    if not source.stem.isidentifier() or len(source.stem) > _NAME_MAX:
        raise UsageError(
            f"{source.name} cannot name a program",
            hint=f"the file's name is the program's: a C identifier of at most {_NAME_MAX} characters",
        )


def load_policy(
    policy: Policy, stack: ExitStack, flows: FlowChoice | None = None
) -> tuple[dict[str, bpf.Map], bpf.Program]:
    """Compile a policy of ours and load it over fresh maps; see ChosenPolicy.fresh()."""
    with ChosenPolicy(policy, None, flows) as chosen:
        return chosen.fresh(stack)


def can_migrate() -> bool:
    """Whether the kernel knows programs of attach type SELECT_OR_MIGRATE. Raises MissingCapability."""
    from reuseport_tool.probes import programs  # only where a program was refused

    try:
        return programs.loads_migrating_program()
    except OSError as error:
        raise bpf.translate(error, "loading a BPF program") from error

"""What differs between the releases of click that the tool runs with: 8.1 (Debian 12 and 13) and newer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING or hasattr(click.ParamType, "__class_getitem__"):
    ParamType = click.ParamType
    Choice = click.Choice
else:

    class _Subscriptable:
        """Gives a type the parameter that it has in newer releases."""

        def __class_getitem__(cls, _: object) -> type[_Subscriptable]:
            return cls

    class ParamType(_Subscriptable, click.ParamType):
        pass

    class Choice(_Subscriptable, click.Choice):
        pass


class NoVerb(click.UsageError):
    """A group was called without a verb. Releases before 8.2 print the help and exit with 0."""


class VerbGroup(click.Group):
    """A group that answers a missing verb with its help and the exit code for a usage error."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"no_args_is_help": False, **options})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise NoVerb(ctx.get_help(), ctx)
        return super().parse_args(ctx, args)

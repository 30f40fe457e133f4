"""completion SHELL"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_NAME, _VARIABLE = "reuseport-tool", "_REUSEPORT_TOOL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL: verbs, options, policies, ports of groups, network namespaces.

    The Debian package installs the scripts.

    \b
    Examples:
      reuseport-tool completion bash > /etc/bash_completion.d/reuseport-tool
      reuseport-tool completion zsh > "${fpath[1]}/_reuseport-tool"
      reuseport-tool completion fish \\
          > ~/.config/fish/completions/reuseport-tool.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(click.get_current_context().find_root().command, {}, _NAME, _VARIABLE).source())

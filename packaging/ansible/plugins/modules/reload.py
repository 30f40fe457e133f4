#!/usr/bin/python
# Copyright (c) 2026 The authors of reuseport-tool
# GNU General Public License v2.0 (see COPYING or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-only

from __future__ import annotations

DOCUMENTATION = r"""
module: reload
short_description: Replace a server with its next version without losing a connection
version_added: 0.1.0
description:
  - Runs C(reuseport-tool reload). The old server works on until the new one has proved that it accepts.
  - Fails with RV(ignore:rolled_back=true) when the reload was rolled back; the old server serves as before then.
  - In check mode it runs with C(--dry-run), starts nothing, and fails where the reload would be refused.
author: The authors of reuseport-tool (@reuseport-tool)
options:
  endpoint:
    description: C(PORT) or C(ADDR:PORT) of the running server.
    type: str
    required: true
  command:
    description: The command of the new server and its arguments, which the tool starts.
    type: list
    elements: str
  new_pid:
    description: The new server runs already, as this process.
    type: int
  run:
    description: A shell command that makes the server replace itself.
    type: str
  stop_signal:
    description: How to stop the old server.
    type: str
  stop_command:
    description: Stop the old server by this command instead.
    type: str
  listeners:
    description: Wait for so many new listeners in each group.
    type: int
  output:
    description: File for the output of the new server.
    type: path
  health_url:
    description: Must answer with 2xx or 3xx.
    type: str
  health_command:
    description: Must succeed.
    type: str
  canary:
    description: Shares in percent that the new server gets one after the other.
    type: list
    elements: float
  step:
    description: How long each share lasts, for example V(30s).
    type: str
  abort_on:
    description: Counters, as C(COUNTER) or C(COUNTER=N), that end the canary.
    type: list
    elements: str
  options:
    description: More options of C(reuseport-tool reload), word by word.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - reuseport.tool.command
attributes:
  check_mode:
    description: Runs the command with C(--dry-run).
    support: full
  diff_mode:
    description: Shows which processes serve each group.
    support: full
"""

EXAMPLES = r"""
- name: Deploy the release
  reuseport.tool.reload:
    endpoint: "8080"
    command: [/srv/web/current/server, "--port", "8080"]
    health_url: http://127.0.0.1:8080/health
    canary: [5, 25, 100]
    step: 30s
    output: /var/log/web.log
"""

RETURN = r"""
report:
  description: The report of the reload, as C(docs/json.md) describes it. In check mode, the answer of C(--dry-run).
  returned: when the tool gave one
  type: dict
rolled_back:
  description: Whether the reload failed and was undone.
  returned: always
  type: bool
rc:
  description: The exit code of the tool.
  returned: failure
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.reuseport.tool.plugins.module_utils import command

# Options that take one value, as they are.
PLAIN = ("new_pid", "run", "stop_signal", "stop_command", "listeners", "output", "health_url", "health_command", "step")


def words(parameters, dry_run):
    """The command line after C(reuseport-tool)."""
    found = ["reload", parameters["endpoint"]]
    for name in PLAIN:
        if parameters[name] is not None:
            found += ["--" + name.replace("_", "-"), parameters[name]]
    if parameters["canary"]:
        found += ["--canary", ",".join(f"{share:g}" for share in parameters["canary"])]
    for counter in parameters["abort_on"] or []:
        found += ["--abort-on", counter]
    found += parameters["options"]
    if dry_run:
        found.append("--dry-run")
    if parameters["command"]:
        found += ["--"] + parameters["command"]
    return found


def sides(groups):
    """What a diff shows of the groups: which processes serve them."""
    return {
        group["endpoint"]: sorted({entry["pid"] for entry in group["listeners"] if entry["pid"] is not None})
        for group in groups
    }


def main():
    module = AnsibleModule(
        argument_spec=dict(
            command.OPTIONS,
            endpoint={"type": "str", "required": True},
            command={"type": "list", "elements": "str"},
            new_pid={"type": "int"},
            run={"type": "str"},
            stop_signal={"type": "str"},
            stop_command={"type": "str"},
            listeners={"type": "int"},
            output={"type": "path"},
            health_url={"type": "str"},
            health_command={"type": "str"},
            canary={"type": "list", "elements": "float"},
            step={"type": "str"},
            abort_on={"type": "list", "elements": "str"},
            options={"type": "list", "elements": "str", "default": []},
        ),
        mutually_exclusive=[("command", "new_pid", "run")],
        required_one_of=[("command", "new_pid", "run")],
        supports_check_mode=True,
    )
    endpoint = module.params["endpoint"]
    before = sides(command.groups(module, endpoint))
    code, report, error, err = command.run(module, *words(module.params, module.check_mode))
    if code or report is None:
        command.fail(module, code, error or _refusal(report), err, report=report)
    after = before if module.check_mode else sides(command.groups(module, endpoint))
    module.exit_json(changed=True, report=report, rolled_back=False, diff={"before": before, "after": after})


def _refusal(report):
    """The answer of a dry run that is a refusal, as an error."""
    if report and report.get("refusal"):
        return {"message": report["refusal"], "hint": report.get("hint")}
    return None


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) 2026 The authors of reuseport-tool
# GNU General Public License v2.0 (see COPYING or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-only

from __future__ import annotations

DOCUMENTATION = r"""
module: attach
short_description: Attach the program of reuseport-tool to a group, or detach it
version_added: 0.1.0
description:
  - Attaches the program to every group that an endpoint means and registers all their listeners, or takes it off.
author: The authors of reuseport-tool (@reuseport-tool)
options:
  endpoint:
    description: C(PORT) or C(ADDR:PORT).
    type: str
    required: true
  policy:
    description: How a new connection gets its listener.
    type: str
    choices: [hash, round-robin, cpu, source-ip]
  state:
    description: Whether the program is to be there.
    type: str
    choices: [attached, detached]
    default: attached
extends_documentation_fragment:
  - reuseport.tool.command
attributes:
  check_mode:
    description: Says what would be attached or detached, and changes nothing.
    support: full
  diff_mode:
    description: Shows the policy of each group, and how many listeners are registered.
    support: full
"""

EXAMPLES = r"""
- name: Lose nothing when a worker closes
  reuseport.tool.attach:
    endpoint: "8080"
    policy: hash
"""

RETURN = r"""
groups:
  description: The groups afterwards, as C(docs/json.md) describes them. In check mode, as they are.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.reuseport.tool.plugins.module_utils import command


def summary(groups):
    """What a diff shows: the policy of each group, and how many of its listeners are registered."""
    return {
        group["endpoint"]: {
            "policy": group["program"]["policy"] if group["program"] else None,
            "registered": sum(entry["generation"] is not None for entry in group["listeners"]),
        }
        for group in groups
    }


def wanted(groups, policy):
    """The summary after attaching."""
    return {
        group["endpoint"]: {
            "policy": policy or (group["program"] and group["program"]["policy"]) or "hash",
            "registered": len(group["listeners"]),
        }
        for group in groups
    }


def main():
    module = AnsibleModule(
        argument_spec=dict(
            command.OPTIONS,
            endpoint={"type": "str", "required": True},
            policy={"type": "str", "choices": ["hash", "round-robin", "cpu", "source-ip"]},
            state={"type": "str", "choices": ["attached", "detached"], "default": "attached"},
        ),
        supports_check_mode=True,
    )
    endpoint, policy = module.params["endpoint"], module.params["policy"]
    attach = module.params["state"] == "attached"
    groups = command.groups(module, endpoint)
    if attach and not groups:
        module.fail_json(msg=f"nothing listens on {endpoint}", rc=command.NOT_FOUND, rolled_back=False)
    before = summary(groups)
    if attach:
        after = wanted(groups, policy)
    else:
        after = {name: {"policy": None, "registered": 0} for name in before}
    changed = before != after or (not attach and any(group["stale"] for group in groups))
    if changed and not module.check_mode:
        words = ["attach", endpoint] if attach else ["detach", endpoint]
        if attach and policy:
            words += ["--policy", policy]
        code, _done, error, err = command.run(module, *words)
        if code:
            command.fail(module, code, error, err, groups=groups)
        groups = command.groups(module, endpoint)
        after = summary(groups)
    module.exit_json(changed=changed, groups=groups, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()

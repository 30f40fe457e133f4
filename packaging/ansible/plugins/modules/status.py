#!/usr/bin/python
# Copyright (c) 2026 The authors of reuseport-tool
# GNU General Public License v2.0 (see COPYING or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-only

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Show the SO_REUSEPORT groups of a host
version_added: 0.1.0
description:
  - Returns what C(reuseport-tool status) shows, and changes nothing.
  - With O(check_problems=true) it fails where C(status) finds a problem.
author: The authors of reuseport-tool (@reuseport-tool)
options:
  endpoint:
    description: Only the groups that this C(PORT) or C(ADDR:PORT) means.
    type: str
  check_problems:
    description: Fail where a group has a problem.
    type: bool
    default: false
extends_documentation_fragment:
  - reuseport.tool.command
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: Refuse to deploy on a host that is not in order
  reuseport.tool.status:
    endpoint: "8080"
    check_problems: true
"""

RETURN = r"""
groups:
  description: The groups, as C(docs/json.md) describes them.
  returned: success
  type: list
  elements: dict
problems:
  description: One sentence for each problem.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.reuseport.tool.plugins.module_utils import command


def main():
    module = AnsibleModule(
        argument_spec=dict(
            command.OPTIONS,
            endpoint={"type": "str"},
            check_problems={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    groups = command.groups(module, module.params["endpoint"])
    problems = [
        "{}: {}: {}".format(group["endpoint"], problem["kind"], problem["detail"])
        for group in groups
        for problem in group["problems"]
    ]
    if problems and module.params["check_problems"]:
        module.fail_json(msg="; ".join(problems), groups=groups, problems=problems)
    module.exit_json(changed=False, groups=groups, problems=problems)


if __name__ == "__main__":
    main()

# Copyright (c) 2026 The authors of reuseport-tool
# GNU General Public License v2.0 (see COPYING or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-only
"""The options that every module has."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  executable:
    description: The command, by name or path.
    type: str
    default: reuseport-tool
  netns:
    description: Work in this network namespace, a name, a path or C(pid:N).
    type: str
  bpffs:
    description: Keep pins in this folder of a bpffs.
    type: path
requirements:
  - reuseport-tool on the host
"""

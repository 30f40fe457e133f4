# Copyright (c) 2026 The authors of reuseport-tool
# GNU General Public License v2.0 (see COPYING or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-only
"""Run reuseport-tool, read its JSON, and say what an exit code means."""

from __future__ import annotations

import json

OPTIONS = {
    "executable": {"type": "str", "default": "reuseport-tool"},
    "netns": {"type": "str"},
    "bpffs": {"type": "path"},
}
ROLLED_BACK = 8
NOT_FOUND = 6


def run(module, *words):
    """The exit code, the JSON on stdout or None, and the error object or None."""
    command = [module.params["executable"], "--json"]
    for name in ("netns", "bpffs"):
        if module.params[name]:
            command += ["--" + name, module.params[name]]
    code, out, err = module.run_command(command + [str(word) for word in words], handle_exceptions=False)
    return code, _last_object(out), _last_object(err), err


def fail(module, code, error, err, **more):
    """End the module with the tool's own message and hint."""
    error = error or {"message": err.strip()[-2000:] or "reuseport-tool failed", "hint": None}
    message = error["message"] + (" ({})".format(error["hint"]) if error.get("hint") else "")
    module.fail_json(msg=message, rc=code, rolled_back=code == ROLLED_BACK, stderr=err, **more)


def _last_object(text):
    """The JSON object that ends a text: on stderr lines of other kinds may come before it."""
    position = 0 if text.startswith("{") else text.rfind("\n{\n") + 1
    try:
        return json.loads(text[position:])
    except ValueError:
        return None


def groups(module, endpoint):
    """The groups that an endpoint means; none where nothing listens."""
    words = ["status"] + ([endpoint] if endpoint else [])
    code, found, error, err = run(module, *words)
    if code == NOT_FOUND:
        return []
    if code or found is None:
        fail(module, code, error, err)
    return found["groups"]

"""A callback plugin for ansible: a line of JSON for the result of each task on each host, in the file $RECORD."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "record"

    def _record(self, result):
        line = {"host": result.host.get_name(), "task": result.task.get_name(), "result": result.result}
        with open(os.environ["RECORD"], "a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    v2_runner_on_ok = _record
    v2_runner_on_unreachable = _record

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._record(result)

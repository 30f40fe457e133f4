"""uvicorn has no option for SO_REUSEPORT, but serves a socket that it is given: `uvicorn_reuseport.py ADDRESS PORT`."""

from __future__ import annotations

import socket
import sys

import uvicorn

from tests.recipes.apps.asgi import app

address, port = sys.argv[1], int(sys.argv[2])
listener = socket.create_server((address, port), reuse_port=True, backlog=1024)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])

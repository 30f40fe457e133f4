"""The command line: one file a verb, render.py for everything that is shown."""

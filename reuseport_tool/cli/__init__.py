"""The command line: one file a verb, show/ for everything that is shown."""

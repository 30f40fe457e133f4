"""One module per job: plain arguments in, a model out. Nothing here prints, prompts or exits."""

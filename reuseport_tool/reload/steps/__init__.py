"""The steps of a reload, one module each: a function of the state and the world that returns the next state."""

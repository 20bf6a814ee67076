"""Training loops of other frameworks, one module each. None is imported before it is asked for."""

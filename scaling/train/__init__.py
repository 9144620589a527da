"""One run: state, step, loop, checkpoints."""

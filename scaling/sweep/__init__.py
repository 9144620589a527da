"""Studies: a grid of runs, its plan, the engines that run it and the records it leaves."""

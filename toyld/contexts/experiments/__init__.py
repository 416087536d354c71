"""The experiments of the rung `contexts`: each a function of the seeds that gives tables by name, one a stage of an arm."""

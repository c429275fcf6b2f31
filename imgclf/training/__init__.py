"""Training: one run from its plan to its report, with stop and resume."""

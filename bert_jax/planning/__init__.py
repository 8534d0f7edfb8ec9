"""Planning: compile a run for absent TPUs and estimate its cost."""

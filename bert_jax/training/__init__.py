"""The mathematics of training: state, step, loss, optimizers, schedules, metrics, policies."""

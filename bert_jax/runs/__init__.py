"""One run on a machine or a pod: workdir, start-up, session, checkpoints, logs."""

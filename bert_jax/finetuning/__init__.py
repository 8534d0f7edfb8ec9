"""Fine-tune: put instances into rows, train, select on dev, sweep, report."""

"""Examine a new machine or slice: `bert-jax doctor`; about ten minutes, one block to paste into a report.

Checked are versions, devices, kernels against their plain forms, a measured training step against the projection of
`plan`, the bandwidth of collectives, and that a killed run resumes bit by bit. On several hosts start the same command
on each; host 0 prints. The exit status is 0 if nothing failed.
"""

import tempfile
import time
from pathlib import Path

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

CHECKS = flags.DEFINE_list("checks", [], "versions, resume, devices, kernels, step, collectives; default: all.")
OUT = flags.DEFINE_string("out", "", "File to write the block to as well.")
SECONDS = flags.DEFINE_float("seconds", 600.0, "Time for all checks; one that does not begin in time is skipped.")
WORKDIR = flags.DEFINE_string("workdir", "", "Existing folder to test in, for example on the disk of workdirs.")
HOST_TIMEOUT = flags.DEFINE_float("host_timeout", 600.0, "Seconds that the hosts of a pod wait for each other.")


def main() -> int:
    """Read the flags, join the other hosts if there are any, and run the checks."""
    start = time.monotonic()
    from bert_jax.diagnosis import examination
    from bert_jax.errors import UserError
    from bert_jax.locations import output_file
    from bert_jax.parallel import distributed

    checks = examination.choose(CHECKS.value)
    if SECONDS.value <= 0:
        raise UserError(f"--seconds={SECONDS.value:g}: must be positive")
    if WORKDIR.value and not Path(WORKDIR.value).is_dir():
        raise UserError(f"--workdir={WORKDIR.value}: there is no such folder; make it first")
    if OUT.value:
        output_file(OUT.value, name="--out")

    def on_host(hosts: distributed.Hosts) -> int:
        with tempfile.TemporaryDirectory(prefix="bert_jax_doctor_", dir=WORKDIR.value or None) as folder:
            return examination.examine_and_report(
                checks, hosts=hosts, workdir=Path(folder), seconds=SECONDS.value, out=OUT.value, start=start
            )

    return distributed.run_on_hosts(on_host, seconds=HOST_TIMEOUT.value)


if __name__ == "__main__":
    cli.run(main)

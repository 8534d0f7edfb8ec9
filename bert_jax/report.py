"""Draw a page of curves and results, or compare runs: `bert-jax report --workdir=DIR [--workdir=DIR ...]`.

The page is one HTML file that loads nothing else. Training commands write WORKDIR/report.html at each evaluation.
Needs matplotlib (extra `report`).
"""

import os

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

WORKDIRS = flags.DEFINE_multi_string(
    "workdir", [], "Workdir of train or finetune; given several times, the runs are compared."
)
OUT = flags.DEFINE_string(
    "out", "", "File to write; default: report.html in the workdir, for several in the current folder."
)
BACKGROUND = flags.DEFINE_bool("background", False, "Print nothing and let other processes go first.")


def main() -> None:
    """Read the flags and draw."""
    from bert_jax.errors import UserError
    from bert_jax.files import writing
    from bert_jax.locations import output_file
    from bert_jax.pages.page import write_page

    if not WORKDIRS.value:
        raise UserError("--workdir is missing: name the workdir of train or finetune")
    if OUT.value:
        output_file(OUT.value, name="--out")
    if BACKGROUND.value:
        os.nice(10)
    with writing("the page", remedy="name another file with --out=FILE"):
        file = write_page(WORKDIRS.value, out=OUT.value)
    if not BACKGROUND.value:
        print(file)


if __name__ == "__main__":
    cli.run(main)

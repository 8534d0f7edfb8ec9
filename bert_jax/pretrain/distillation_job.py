"""The job of a distillation: the pre-training job with a teacher in its steps, evaluations and records."""

from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.json_files import read_log
from bert_jax.model.architectures import architecture_of
from bert_jax.pretrain.dataset import OpenData
from bert_jax.pretrain.distillation_program import DistillationProgram
from bert_jax.pretrain.evaluation import Evaluator
from bert_jax.pretrain.evaluation_program import EvaluationProgram
from bert_jax.pretrain.job import PretrainingJob
from bert_jax.pretrain.relation_objective import RelationObjective
from bert_jax.pretrain.teacher import Teacher
from bert_jax.runs.runtime import Runtime
from bert_jax.training.schedule import Phase, phase_at
from bert_jax.training.state import TrainState


class DistillationJob(PretrainingJob):
    """One run of a student with a teacher, which is on the mesh already."""

    def __init__(
        self,
        program: DistillationProgram,
        *,
        data: OpenData,
        runtime: Runtime,
        params: Any,
        trained: Sequence[str],
        teacher: Teacher,
    ):
        """Start as a pre-training job does. The loss before the first step is reported: a baseline."""
        super().__init__(program, data=data, runtime=runtime, params=params, trained=trained)
        self.evaluates_initial_state = True
        self._distilling, self._teacher = program, teacher

    def abstract_state(self, metadata: Mapping[str, Any]) -> TrainState:
        """Return the state to restore; check that the checkpoint has the same teacher, vocabulary and data."""
        self._teacher.check_same(metadata.get("teacher", {}), where="the checkpoint")
        return super().abstract_state(metadata)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of pre-training and the teacher's identity."""
        return {**super().metadata(), "teacher": self._teacher.record}

    def cost_of_step(self, step: int) -> Mapping[str, float]:
        """Return the sequences, tokens and FLOPs of the batch of `step`: student, teacher's forward pass, relations."""
        phase = phase_at(self.program.phases, step=step)
        has_heads = bool(self._distilling.distill.pretraining_weight)
        info, length, teacher = self.info(phase), phase.max_seq_length, self._distilling.teacher.model
        student = self.program.model(phase)
        flops = architecture_of(student).train_flops_per_row(
            student,
            max_seq_length=length,
            max_predictions=self.program.max_predictions(phase) if has_heads else 0,
            instances=info.mean_instances if has_heads else 0,
            attended_share=info.attended_share,
        )
        flops += (
            architecture_of(teacher).train_flops_per_row(
                teacher, max_seq_length=length, max_predictions=0, instances=0, attended_share=info.attended_share
            )
            / 3  # the forward pass
        )
        # A multiplication and an addition per pair of tokens, for three kinds; the student's in its backward pass too.
        flops += 2 * 3 * length**2 * info.attended_share * (teacher.hidden_size + 3 * student.hidden_size)
        rows = float(phase.batch_size)
        return {"sequences": rows, "tokens": rows * length, "flops": rows * flops}

    def evaluator(self, phase: Phase) -> Evaluator:
        """Return the evaluation of `phase`: relations, and the language model where it is trained."""
        objective = self._distilling.relation_evaluation(phase, special=self._special)
        return RelationEvaluator(
            self.program.evaluation,
            objective=objective,
            step=self._distilling.evaluation_step(objective),
            info=self.info(phase),
            batch_size=phase.batch_size,
            max_examples=self.config.eval.max_examples,
        )

    def conclusions(self) -> list[str]:
        """Return what the evaluations say at the end of the run."""
        if not self.last_evaluation or not self._runtime.hosts.is_main:
            return []
        losses = [
            (line["step"], line["eval/relation_loss"])
            for line in read_log(self._runtime.path / "metrics.jsonl")
            if "step" in line and isinstance(line.get("eval/relation_loss"), float | int)
        ]
        (first, before), (last, after) = losses[0], losses[-1]
        of_model = super().conclusions() if self._distilling.distill.pretraining_weight else []
        line = f"held-out relation loss before (step {first}) {before:.4f}, after (step {last}) {after:.4f}"
        return [line, *of_model]


class RelationEvaluator(Evaluator):
    """The held-out metrics of a student."""

    def __init__(self, program: EvaluationProgram, *, objective: RelationObjective, **options: Any):
        """Open the sequences; `options` are those of `Evaluator`."""
        super().__init__(program, objective=objective, **options)
        self._weight = objective.pretraining_weight

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the `eval/...` metrics; the loss is what is minimized."""
        metrics = super().metrics(means) if self._weight else {f"eval/{name}": value for name, value in means.items()}
        metrics["eval/loss"] = means["relation_loss"] + self._weight * metrics.get("eval/loss", 0.0)
        return metrics

"""The pre-training job: phases of batches, masked on the device, and held-out evaluation."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config.builder import to_dict
from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.data.loader import PretrainingBatches
from bert_jax.errors import UserError
from bert_jax.files import writing
from bert_jax.json_files import read_json
from bert_jax.model.architectures import architecture_of
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.continuing import ORIGIN, perplexity_before_and_after
from bert_jax.pretrain.dataset import OpenData
from bert_jax.pretrain.evaluation import Evaluator, describe, verdict, without_bytes
from bert_jax.pretrain.filled_masks import SAMPLES, FilledMasks
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.runs.job import Job, StepFunction
from bert_jax.runs.loop import Callback
from bert_jax.runs.recorder import Recorder
from bert_jax.runs.runtime import Runtime
from bert_jax.runs.step_lines import append_line, keep_lines
from bert_jax.training.schedule import Phase, phase_at
from bert_jax.training.state import TrainState
from bert_jax.types import Rows


class PretrainingJob(Job):
    """One run of a pre-training program on a data set."""

    remedy = (
        "lower config.optimizer.learning_rate or raise config.optimizer.warmup_steps, and start with a new --workdir"
    )

    def __init__(
        self,
        program: PretrainingProgram,
        *,
        data: OpenData,
        runtime: Runtime,
        params: Any,
        trained: Sequence[str] = (),
    ):
        """Start from `params` in host memory, of which the parts `trained` are not random, or from random ones."""
        self.program, self.config = program, program.config
        self.num_steps = self.config.train.num_steps
        self.run_config = to_dict(self.config)
        self.evaluates_initial_state = params is not None
        self.last_evaluation: dict[str, float] = {}
        self._data, self._report, self._params, self._runtime = data, runtime.report, params, runtime
        self._special = data.special
        self._untrained = [part for part in program.untrained_parts if part not in trained]
        file = runtime.path / ORIGIN
        self._origin = read_json(file) if file.is_file() else {}
        self._steps: dict[int, StepFunction] = {}

    def abstract_state(self, metadata: Mapping[str, Any]) -> TrainState:
        """Return the state to restore; check that the checkpoint was trained on the same vocabulary and data."""
        for name, current in self._data.fingerprints.items():
            trained = metadata["fingerprints"].get(name, current)
            if trained != current:
                raise UserError(
                    f"the checkpoint was trained with another {name} (fingerprint {trained[:12]}) than this data set "
                    f"has ({current[:12]}): set --config.data.directory to the old data set, or choose another "
                    "--workdir"
                )
        return self.program.abstract_state()

    def initial_state(self) -> TrainState:
        """Return a randomly initialized state, with the parameters to start from if there are any."""
        state, params = self.program.random_state(), self._params
        self._params = None  # else they would stay in host memory for the whole run
        return state if params is None else dataclasses.replace(state, params=self.program.place_params(params))

    def placed(self, state: TrainState) -> TrainState:
        """Return a restored state with the rows that a step adds."""
        return self.program.placed(state)

    def stored(self, state: TrainState) -> TrainState:
        """Return a state without the rows that a step adds."""
        return self.program.stored(state)

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Free the parameters to start from: the checkpoint replaces them."""
        untrained = metadata.get("untrained", self.program.untrained_parts)
        self._untrained = [part for part in self.program.untrained_parts if part in untrained]
        self._params = None

    def batches(self, start: int) -> Iterator[Rows]:
        """Yield the global batches of steps `start`, `start + 1`, ...; batch k is a function of (seed, k)."""
        shares, share_count = meshes.batch_shards(self.program.mesh)
        for index, phase in enumerate(self.program.phases):
            if phase.end <= start or phase.end == phase.start:
                continue
            # Each phase has its own seed, so phases of one length have different orders.
            loader = PretrainingBatches(
                self.info(phase).directory,
                max_seq_length=phase.max_seq_length,
                batch_size=phase.batch_size,
                seed=self.config.seed * 1000 + index,
                shards=shares,
                num_shards=share_count,
            )
            first = max(start, phase.start) - phase.start
            for local in loader.iterate(start=first, stop=phase.end - phase.start):
                yield Rows(**meshes.to_global(local, mesh=self.program.mesh))

    def train_step(self, step: int) -> StepFunction:
        """Return the step function of the phase of `step`."""
        phase = phase_at(self.program.phases, step=step)
        if phase.start not in self._steps:
            self._steps[phase.start] = self.program.train_step(phase, special=self._special)
        return self._steps[phase.start]

    def compiles_at(self, step: int) -> bool:
        """Return whether the program of `step` is not compiled yet: a new phase starts."""
        return phase_at(self.program.phases, step=step).start not in self._steps

    def learning_rate(self, step: int) -> float:
        """Return the scheduled learning rate."""
        return float(self.program.schedule(step))

    def cost_of_step(self, step: int) -> Mapping[str, float]:
        """Return the sequences, tokens and FLOPs of the batch of `step`."""
        phase = phase_at(self.program.phases, step=step)
        info = self.info(phase)
        model = self.program.model(phase)
        flops = architecture_of(model).train_flops_per_row(
            model,
            max_seq_length=phase.max_seq_length,
            max_predictions=self.program.max_predictions(phase),
            instances=info.mean_instances,
            attended_share=info.attended_share,
        )
        rows = float(phase.batch_size)
        return {"sequences": rows, "tokens": rows * phase.max_seq_length, "flops": rows * flops}

    def evaluations(self, start: int, *, recorder: Recorder) -> Sequence[Callback]:
        """Open the held-out sequences of all remaining phases: a damaged shard is an error before the first step."""
        phases = [phase for phase in self.program.phases if phase.end > start and self._can_evaluate(phase)]
        for note in dict.fromkeys(without_bytes(self.info(phase)) for phase in phases):
            if note:
                self._report(note)
        evaluators = {phase.start: self.evaluator(phase) for phase in phases}
        return [_Evaluate(self, evaluators=evaluators, recorder=recorder), *self._filled_masks(phases, start, recorder)]

    @property
    def fills_masks(self) -> bool:
        """Return whether the head of the language model is trained."""
        return "masked_lm" not in self._untrained

    def conclusions(self) -> list[str]:
        """Return what the evaluations say at the end of the run."""
        if not self.last_evaluation:
            return []
        lines = [verdict(self.last_evaluation)]
        if self.evaluates_initial_state and self._runtime.hosts.is_main:
            lines.append(perplexity_before_and_after(self._runtime.path / "metrics.jsonl"))
        return lines

    def metadata(self) -> dict[str, Any]:
        """Return the config, the fingerprints, the parts that are still random, and the run that this one continues."""
        origin = {"origin": self._origin} if self._origin else {}
        fingerprints = self._data.fingerprints
        return {"config": self.run_config, "fingerprints": fingerprints, "untrained": self._untrained, **origin}

    def info(self, phase: Phase) -> DatasetInfo:
        """Return the data set of `phase`."""
        return self._data.infos[phase.max_seq_length]

    def _can_evaluate(self, phase: Phase) -> bool:
        info = self.info(phase)
        if not info.num_validation_rows:
            self._report(
                f"no evaluation: the data set in {info.directory} has no held-out sequences of "
                f"{phase.max_seq_length} tokens"
            )
        return bool(info.num_validation_rows)

    def evaluator(self, phase: Phase) -> Evaluator:
        """Return the evaluation of `phase`."""
        return Evaluator(
            self.program.evaluation,
            objective=self.program.evaluation_objective(phase, special=self._special),
            info=self.info(phase),
            batch_size=phase.batch_size,
            max_examples=self.config.eval.max_examples,
        )

    def _filled_masks(self, phases: Sequence[Phase], start: int, recorder: Recorder) -> list[Callback]:
        """Return the callback that writes what the model fills in; none for models that see nothing after a mask."""
        sees_both_sides = self.config.model.attention_direction == "bidirectional"
        if not (self.config.log.report and sees_both_sides and self.fills_masks and phases):
            return []
        filled = {
            phase.start: FilledMasks(
                self.program.evaluation,
                objective=self.program.evaluation_objective(phase, special=self._special),
                info=self.info(phase),
                tokenizer=self._data.tokenizer,
                batch_size=phase.batch_size,
            )
            for phase in phases
            if not self.program.is_causal(phase)
        }
        file = self._runtime.path / SAMPLES if self._runtime.hosts.is_main else None
        if file is not None:
            keep_lines(file, resume_step=start or -1)  # a new run writes step 0 again
        return [_FillMasks(self, filled=filled, file=file, recorder=recorder)]


class _FillMasks:
    """The examples of filled masks, at each evaluation; host 0 writes them."""

    def __init__(
        self, job: PretrainingJob, *, filled: Mapping[int, FilledMasks], file: Path | None, recorder: Recorder
    ):
        self.every = job.config.eval.every
        self._job, self._filled, self._file, self._recorder = job, filled, file, recorder

    def __call__(self, step: int, *, state: TrainState) -> None:
        phase = phase_at(self._job.program.phases, step=max(step - 1, 0))
        if phase.start not in self._filled:
            return
        with self._recorder.spending("evaluation"):
            samples = self._filled[phase.start](state.params)
        if self._file is None:
            return
        try:
            with writing(self._file, remedy="the run continues"), self._file.open("ab", buffering=0) as file:
                append_line(file, {"step": step, "samples": samples}, path=self._file)
        except UserError as error:  # examples are not worth a run
            self._recorder.say(str(error))


class _Evaluate:
    """The evaluation every `eval.every` steps."""

    def __init__(self, job: PretrainingJob, *, evaluators: Mapping[int, Evaluator], recorder: Recorder):
        self.every = job.config.eval.every
        self._job, self._evaluators, self._recorder = job, evaluators, recorder

    def __call__(self, step: int, *, state: TrainState) -> None:
        phase = phase_at(self._job.program.phases, step=max(step - 1, 0))
        if phase.start not in self._evaluators:
            return
        with self._recorder.spending("evaluation"):
            metrics = self._evaluators[phase.start](state.params)
        self._recorder.write(step, metrics)
        self._recorder.say(f"step {step}  {describe(metrics)}")
        self._job.last_evaluation = metrics

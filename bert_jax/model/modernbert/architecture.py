"""ModernBERT (Warner et al. 2024): its entry in the table of architectures."""

from bert_jax.model.architecture import Architecture, HuggingFaceFormat
from bert_jax.model.modernbert.encoder import ModernBertEncoder, projections
from bert_jax.model.modernbert.flops import train_flops_per_row
from bert_jax.model.modernbert.heads import Decoder, Transform
from bert_jax.model.modernbert.huggingface_config import SHAPE_FIELDS, SPECIAL_IDS, read_fields, write_fields
from bert_jax.model.modernbert.names import NAMES, classifier_stddev
from bert_jax.model.modernbert.reference import huggingface_outputs
from bert_jax.model.projection import LayerProjections

MODERNBERT = Architecture(
    name="modernbert",
    title="ModernBERT",
    citation="Warner et al. 2024",
    encoder=ModernBertEncoder,
    heads={"transform": Transform, "masked_lm": Decoder},
    names=NAMES,
    shape_fields=SHAPE_FIELDS,
    train_flops_per_row=train_flops_per_row,
    projections=LayerProjections(("attention_layer_norm", "query", "key", "value"), projections),
    classifier_stddev=classifier_stddev,
    huggingface=HuggingFaceFormat(
        class_prefix="ModernBert",
        classes={
            "ModernBertForMaskedLM": ("encoder", "transform", "masked_lm"),
            "ModernBertModel": ("encoder",),
            "ModernBertForSequenceClassification": ("encoder", "transform", "classifier"),
            "ModernBertForMultipleChoice": ("encoder", "transform", "classifier"),
            "ModernBertForTokenClassification": ("encoder", "transform", "classifier"),
            "ModernBertForQuestionAnswering": ("encoder", "transform", "qa_outputs"),
        },
        pretraining_class="ForMaskedLM",
        read_fields=read_fields,
        write_fields=write_fields,
        outputs=huggingface_outputs,
        special_ids=SPECIAL_IDS,
        has_token_types=False,
        verified_length=192,  # longer than a window of 64 to each side
    ),
)

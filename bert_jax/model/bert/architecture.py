"""BERT (Devlin et al. 2018): its entry in the table of architectures."""

from bert_jax.model.architecture import Architecture, HuggingFaceFormat
from bert_jax.model.bert.encoder import BertEncoder
from bert_jax.model.bert.flops import train_flops_per_row
from bert_jax.model.bert.heads import MaskedLMHead, NextSentenceHead, Pooler
from bert_jax.model.bert.huggingface_config import SHAPE_FIELDS, read_fields, write_fields
from bert_jax.model.bert.names import NAMES
from bert_jax.model.bert.reference import huggingface_outputs
from bert_jax.model.projection import LayerProjections, project

BERT = Architecture(
    name="bert",
    title="BERT",
    citation="Devlin et al. 2018",
    encoder=BertEncoder,
    heads={"pooler": Pooler, "masked_lm": MaskedLMHead, "next_sentence": NextSentenceHead},
    names=NAMES,
    shape_fields=SHAPE_FIELDS,
    train_flops_per_row=train_flops_per_row,
    projections=LayerProjections(("query", "key", "value"), project),
    huggingface=HuggingFaceFormat(
        class_prefix="Bert",
        classes={
            "BertForPreTraining": ("encoder", "pooler", "masked_lm", "next_sentence"),
            "BertForMaskedLM": ("encoder", "masked_lm"),
            "BertForNextSentencePrediction": ("encoder", "pooler", "next_sentence"),
            "BertModel": ("encoder", "pooler"),
            "BertForSequenceClassification": ("encoder", "pooler", "classifier"),
            "BertForMultipleChoice": ("encoder", "pooler", "classifier"),
            "BertForTokenClassification": ("encoder", "classifier"),
            "BertForQuestionAnswering": ("encoder", "qa_outputs"),
            "BertLMHeadModel": ("encoder", "masked_lm"),
        },
        read_fields=read_fields,
        write_fields=write_fields,
        outputs=huggingface_outputs,
    ),
)

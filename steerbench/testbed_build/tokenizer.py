"""The tokenizer of the world's models: byte-level BPE learned from its texts."""

from collections.abc import Iterable
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY: Final = 4096
CONTEXT: Final = 512
PAD, END, CLS, SEP = "<|pad|>", "<|end|>", "<|cls|>", "<|sep|>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def learn(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from texts; all bytes are in the vocabulary, so that any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, CLS, SEP, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def for_chat(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the language model and the guide: with the chat template."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        model_max_length=CONTEXT,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def for_encoder(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the encoder and the held-out reward: texts stand between two marks."""
    own = Tokenizer.from_str(tokenizer.to_str())
    marks = [(mark, own.token_to_id(mark)) for mark in (CLS, SEP)]
    own.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=own, cls_token=CLS, sep_token=SEP, pad_token=PAD, model_max_length=CONTEXT
    )

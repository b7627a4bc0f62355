"""A small tokenizer of LLaMA's kind: BPE with byte fallback, and blanks as words' first letters."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "USER: What is shown in this image? ASSISTANT: A red circle and a blue square.",
    "Where is the star? It is left of the triangle, in cell b3.",
    "How many circles are there? There are 4 circles and 12 squares; one sign reads K7.",
    "Straße, naïve café, Größe, señor, façade, œuvre",
    "the quick brown fox jumps over the lazy dog 0123456789 \n\n\t <image> </s> <s> <|im_end|>",
] * 4


def llama(prefix: str) -> Tokenizer:
    """Return a tokenizer like LLaMA's: BPE with byte fallback.

    ``prefix`` says who puts the leading blank: "normalizer", or a scheme of Metaspace.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        keep = None
    else:
        keep = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="never"
    )  # merges within words, as LLaMA's
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        show_progress=False,
        limit_alphabet=60,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained = Tokenizer.from_str(tokenizer.to_str()).model
    plain = Tokenizer(trained)  # the byte tokens are vocabulary, not special
    plain.normalizer = tokenizer.normalizer if prefix == "normalizer" else normalizers.Sequence([])
    if keep is not None:
        plain.pre_tokenizer = keep
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>", "<image>", "<pad>")]
    )
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return plain

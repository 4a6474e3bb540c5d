"""Hugging Face's answers to what tokenizer/truth_test.go asks: JSON lines on standard input, one answer a line.

truth.py encode TOKENIZER.JSON   text -> {ids, template, ordinary, decoded}
truth.py decode TOKENIZER.JSON   ids -> text
truth.py pieces TOKENIZER.JSON   text -> pre-tokens, cut out of the text
truth.py train VOCAB OUT.JSON    texts, then a tokenizer.json trained on them
truth.py train-spm VOCAB OUT.JSON     the same as SentencePiece spells it: characters, byte fallback, U+2581 for a space
truth.py train-across VOCAB OUT.JSON  the same with merges across spaces
"""
import json
import sys

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def answer(value):
    sys.stdout.write(json.dumps(value) + "\n")


def train(vocab_size, out, texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(out)


def train_spm(vocab_size, out, texts, across):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    if not across:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=special, show_progress=False, limit_alphabet=200,
        max_token_length=12)
    if across:
        texts = [text[i:i + 50] for text in texts for i in range(0, min(len(text), 20000), 50)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.save(out)


def main():
    lines = (json.loads(line) for line in sys.stdin)
    mode = sys.argv[1]
    if mode == "train":
        return train(int(sys.argv[2]), sys.argv[3], lines)
    if mode in ("train-spm", "train-across"):
        return train_spm(int(sys.argv[2]), sys.argv[3], lines, mode == "train-across")
    tokenizer = Tokenizer.from_file(sys.argv[2])
    ordinary = Tokenizer.from_file(sys.argv[2])
    ordinary.encode_special_tokens = True
    for line in lines:
        if mode == "encode":
            ids = tokenizer.encode(line, add_special_tokens=False).ids
            answer({
                "ids": ids,
                "template": tokenizer.encode(line).ids,
                "ordinary": ordinary.encode(line, add_special_tokens=False).ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            })
        elif mode == "decode":
            answer(tokenizer.decode(line, skip_special_tokens=False))
        elif mode == "pieces":
            answer([line[a:b] for _, (a, b) in tokenizer.pre_tokenizer.pre_tokenize_str(line)])


main()

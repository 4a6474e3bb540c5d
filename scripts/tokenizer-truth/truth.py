"""Hugging Face's answers to what tokenizer/truth_test.go asks: JSON lines on standard input, one answer a line.

truth.py encode TOKENIZER.JSON   text -> {ids, template, ordinary, decoded}
truth.py decode TOKENIZER.JSON   ids -> text
truth.py pieces TOKENIZER.JSON   text -> pre-tokens, cut out of the text
truth.py train VOCAB OUT.JSON    texts, then a tokenizer.json trained on them
"""
import json
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


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


def main():
    lines = (json.loads(line) for line in sys.stdin)
    mode = sys.argv[1]
    if mode == "train":
        return train(int(sys.argv[2]), sys.argv[3], lines)
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

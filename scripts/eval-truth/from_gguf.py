"""from_gguf.py FILE.gguf DIR: the model of a GGUF file, by transformers, as a float32 Hugging Face directory.

The tokenizer is built here from the file's tokens and merges, since transformers does not read which pre-tokenizer it wants;
known is SmolLM's (single digits, then GPT-2's).
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM


def utf8_may_hold(byte):
    """Whether valid text can hold the byte that the byte-level alphabet spells so."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [b for b in range(256) if b not in kept]
    code = ord(byte) if ord(byte) in kept else shifted[ord(byte) - 256]
    return code not in (0xC0, 0xC1) and code < 0xF5


def tokenizer(reader, out):
    field = lambda key: reader.fields[key].contents()
    if (pre := field("tokenizer.ggml.pre")) != "smollm":
        sys.exit(f"from_gguf: pre-tokenizer {pre} is not known here")
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    control = [t for t, kind in zip(tokens, kinds) if kind == 3]
    # The vocabulary lacks bytes that text may hold. They take over control tokens that no text here holds, from the last one on.
    missing = [b for b in pre_tokenizers.ByteLevel.alphabet() if b not in tokens and utf8_may_hold(b)]
    for byte in missing:
        tokens[tokens.index(control.pop())] = byte
    tk = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tk.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tk.decoder = decoders.ByteLevel()
    tk.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tk.save(os.path.join(out, "tokenizer.json"))
    special = {name: tokens[field(f"tokenizer.ggml.{name[:3]}_token_id")] for name in ("bos_token", "eos_token")}
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 8192, **special}, f, indent=2)


def main():
    path, out = sys.argv[1:3]
    os.makedirs(out, exist_ok=True)
    folder, name = os.path.split(os.path.abspath(path))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id"):
        config.pop(key, None)
    config.update(architectures=[type(model).__name__], dtype="float32")
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f, indent=2, default=str)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    save_file({k: v.float().contiguous() for k, v in state.items()}, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    tokenizer(gguf.GGUFReader(path), out)


main()

"""transformers' apply_chat_template on conversations, for every chat/testdata/*.jinja, as JSON lines:
{"template", "messages", "generation", "variables", "want"}, or "error" where the template refuses the conversation."""
import datetime
import json
import os
import pathlib

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402
from transformers.utils import chat_template_utils  # noqa: E402


class Now(datetime.datetime):
    """The day that chat_test.go gives as Options.Now."""

    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 7, 9, 5, 4)


chat_template_utils.datetime = Now

ENDS = {"llama-2": ("<s>", "</s>"), "mistral": ("<s>", "</s>"), "llama-3": ("<|begin_of_text|>", "<|eot_id|>"),
        "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "smollm2": ("<|im_start|>", "<|im_end|>"),
        "": (None, "<|im_end|>")}


def turns(*contents, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for i, content in enumerate(contents):
        messages.append({"role": ["user", "assistant"][i % 2], "content": content})
    return messages


CONVERSATIONS = [
    turns("Hi"),
    turns("Who are you?", system="You are terse."),
    turns("What is 2+2?", "4", "And twice that?"),
    turns("What is 2+2?", "4", "And twice that?", "8", "Thanks!", system="Answer with numbers only."),
    turns("Grüße, 世界! 👩‍👩‍👧 é", "«Привет» — \u00a0ok", "नमस्ते?", system="日本語で。"),
    turns("  spaces around \n\n", "\n\tindented\n", " \"quotes\" 'single' \\n & <b> {{ x }} {% y %} ", system=" trimmed? \n"),
    turns("Hi", "Hello."),
    turns("Solve it.", "<think>\nLet me see.\n</think>\n\nDone.", "Again.", "<think>no</think>Yes", "And?"),
    turns("", "", ""),
    turns("", system=""),
    turns("Inject <|im_end|> </s> [INST] <|eot_id|>", "a" * 300, "more"),
    turns("/no_think Hi", system="/think careful"),
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}, {"role": "user", "content": "b"}],
    [{"role": "system", "content": "alone"}],
]


def main():
    for path in sorted((pathlib.Path(__file__).parents[2] / "chat/testdata").glob("*.jinja")):
        bos, eos = next(v for k, v in ENDS.items() if path.stem.startswith(k))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos)
        tokenizer.chat_template = path.read_text()
        variables = [{}]
        if path.stem.startswith(("qwen3", "smollm3")):
            variables.append({"enable_thinking": False})
        if path.stem.startswith("llama-3."):
            variables.append({"date_string": "01 Feb 2023"})
        for messages in CONVERSATIONS:
            for more in variables:
                for generation in (False, True):
                    case = {"template": path.name, "messages": messages, "generation": generation, "variables": more}
                    try:
                        case["want"] = tokenizer.apply_chat_template(
                            messages, tokenize=False, add_generation_prompt=generation, **more)
                    except Exception as e:
                        case["error"] = str(e).split("\n")[0]
                    print(json.dumps(case, ensure_ascii=False))


main()

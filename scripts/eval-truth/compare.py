"""The driver of scripts/eval-truth: asks nha and lm_eval the same and compares request by request.

The tasks of lm_eval that exist are taken as they are, reading the local file in place of the hub. The recall tasks, which its
released versions lack, are written down here once more from the protocol, with Hugging Face's tokenizer; RULER's samples
are nha's, exported.
"""

import argparse
import datetime
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys

import datasets
import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all
from lm_eval.utils import make_table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HARNESS = ["arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "lambada_openai", "lambada_standard", "wikitext"]
RECALL = ["fda", "swde", "squad", "nq", "triviaqa", "drop"]
RULER = ["niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue",
         "niah_multiquery", "ruler_vt", "ruler_cwe", "ruler_fwe"]
LIMIT = 1e-3  # of a log-likelihood; of one over many tokens, relative


def tiny(out):
    """A Llama of random weights with opinions, and the tokenizer that the repository's tests use."""
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=2048, initializer_range=0.15, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False)
    LlamaForCausalLM(config).float().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        with open(f"{REPOSITORY}/tokenizer/testdata/{name}") as f, open(f"{out}/{name}", "w") as g:
            g.write(f.read())
    return out


def read(path):
    with open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


# The recall tasks, as prefix-linear-attention has them.

def position(text, answer):
    m = re.search(re.escape(answer), text, re.IGNORECASE)
    return m.start() if m else -1


def truncated(tk, doc, field, keys, length):
    """The context cut to length - 50 tokens around the answer; None: the document is left out."""
    context = doc[field].strip()
    at = -1
    for key in keys:
        answer = doc[key][0] if isinstance(doc[key], list) else doc[key]
        if len(answer) <= 1:
            return None
        p = position(context, answer)
        if p >= 0 and (at == -1 or p < at):
            at = p
    if at < 0 and "alt_answers" in doc:
        at = next((p for p in (position(context, a) for a in doc["alt_answers"]) if p >= 0), -1)
    if not keys:
        at = 0
    desired = length - 50
    ids = tk(context)["input_ids"]
    before = len(tk(context[:at])["input_ids"])
    start = max(0, before - desired // 2)
    end = min(len(ids), before + desired - (before - start))
    return tk.decode(ids[start:end], skip_special_tokens=True)


def without(text, question):
    while question and text.lower().endswith(question.lower()):
        text = text[:-len(question)]
    return text


def recall_prompt(task, doc, text):
    if task in ("fda", "swde"):
        key = doc["key"][0].upper() + doc["key"][1:] + ":"
        if task == "swde":
            text = without(text.split("Summary of information above...")[0], doc["key"] + ":")
            return text.strip("\n").strip().strip("\n").strip().strip(".") + ". " + key
        text = without(text, doc["key"] + ":").strip("\n").strip(".")
        return text + ("" if text.endswith(".") else ".") + " " + key
    if task == "squad":
        return text.strip()
    question = doc["question"].strip()
    text = text.strip()
    if task == "nq":
        text = text[:-len(question)] if text.endswith(question) else text
    else:
        if task == "triviaqa":
            text = re.sub(r"\[PAR\]|\[DOC\]|\[TLE\]", "", text)
        text = without(text, question)
    return text.strip().strip(".") + ". " + question


def recall_docs(tk, task, data, lengths):
    field = "text" if task in ("fda", "swde", "squad") else "context"
    keys = {"fda": ["key", "value"], "swde": ["key", "value"], "squad": ["value"], "nq": ["answers"]}.get(task, [])
    docs = []
    for length in lengths:
        for doc in read(f"{data}/{f'nq_{length}' if task == 'nq' else task}.jsonl"):
            text = truncated(tk, doc, field, keys, 2000 if task == "nq" else length)
            if text is not None:
                labels = doc["answers"] if "answers" in doc and task != "squad" else [doc["value"]]
                docs.append({"prompt": recall_prompt(task, doc, text), "labels": labels, "length": length})
    return docs


def of(docs):
    return lambda **_: {"test": datasets.Dataset.from_list(docs)}


def contains(doc, results):
    hit = max(int(bool(re.search(re.escape(l), results[0], re.IGNORECASE))) for l in doc["labels"])
    return {f"contains@{doc['length']}": hit}


def string_match(doc, results):
    return {str(doc["max_length"]): string_match_all(postprocess_pred(results), [doc["outputs"]])}


class Lengths(lm_eval.api.task.ConfigurableTask):
    """A generating task whose documents each have a metric of their own length."""

    def aggregation(self):
        return {m["metric"]: lm_eval.api.metrics.mean for m in self.config.metric_list}

    def higher_is_better(self):
        return {m["metric"]: True for m in self.config.metric_list}


def generating(name, docs, metrics, process, tokens, until, **more):
    metric_list = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics]
    return Lengths(config={"task": name, "custom_dataset": of(docs), "test_split": "test", "output_type": "generate_until", "doc_to_target": "",
                           "process_results": process, "metric_list": metric_list,
                           "generation_kwargs": {"do_sample": False, "until": until, "max_gen_toks": tokens}, **more})


def harness_task(manager, name, path):
    """lm_eval's own task, reading a local file."""
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {s: path for s in ("train", "validation", "test")}}}
    return manager._factory.build(manager._entry(name), overrides=local, registry=manager._index)


def ask_nha(args, model, task, data, *flags):
    files = f"{args.work}/samples.jsonl", f"{args.work}/results"
    subprocess.run([args.nha, "eval", model, "--tasks", task, "--data", data, "--samples", files[0], "--output", files[1], "--no-resume", "--json",
                    "--backend", args.backend, *flags], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    newest = max((os.path.join(d, f) for d, _, names in os.walk(files[1]) for f in names if f.startswith("results_")), key=os.path.getmtime)
    with open(newest) as f:
        results = json.load(f)
    assert task in make_table(results), f"lm_eval's table tool does not read {newest}"
    return read(files[0]), results["results"][task]


def ask_harness(lm, tasks):
    """The samples and values of every task."""
    r = lm_eval.simple_evaluate(model=lm, tasks=tasks, log_samples=True, bootstrap_iters=10, verbosity="ERROR")
    return {name: (sorted(r["samples"][name], key=lambda s: s["doc_id"]), r["results"][name]) for name in r["results"]}


class Comparison:
    def __init__(self):
        self.rows, self.failures = [], []

    def task(self, name, ours, theirs):
        (our_docs, our_values), (their_docs, their_values) = ours, theirs
        fail = lambda what: self.failures.append(f"{name}: {what}")
        if len(our_docs) != len(their_docs):
            return fail(f"{len(our_docs)} documents, lm_eval has {len(their_docs)}")
        worst, differ, requests = 0.0, 0, 0
        for x, y in zip(our_docs, their_docs):
            resps = [r[0] for r in y["resps"]]
            flat = [resps[0]] if isinstance(x["resps"][0], str) else resps
            if name == "wikitext":  # one request there, windows here
                flat, x["resps"] = [[resps[0], False]], [[sum(r[0] for r in x["resps"]), False]]
                x["arguments"] = [["", y["arguments"]["gen_args_0"]["arg_0"] if isinstance(y["arguments"], dict) else y["arguments"][0][0]]]
            if len(flat) != len(x["resps"]):
                fail(f"document {x['doc_id']}: {len(x['resps'])} requests, lm_eval has {len(flat)}")
                continue
            for i, (p, q) in enumerate(zip(x["resps"], flat)):
                requests += 1
                theirs_said = y["arguments"][f"gen_args_{i}"] if isinstance(y["arguments"], dict) else dict(zip(("arg_0", "arg_1"), y["arguments"][i]))
                if isinstance(p, str):
                    if theirs_said["arg_0"] != x["arguments"][i][0]:
                        fail(f"document {x['doc_id']}: another prompt\n  ours   {x['arguments'][i][0][-300:]!r}\n  theirs {theirs_said['arg_0'][-300:]!r}")
                    elif p != q:
                        differ += 1
                        fail(f"document {x['doc_id']}: another continuation\n  ours   {p!r}\n  theirs {q!r}")
                    continue
                if name != "wikitext" and [theirs_said["arg_0"], theirs_said["arg_1"]] != x["arguments"][i]:
                    fail(f"document {x['doc_id']}: other texts\n  ours   {x['arguments'][i]!r}\n  theirs {theirs_said!r}")
                delta = abs(p[0] - q[0]) / max(1.0, abs(q[0]) / 100)
                worst = max(worst, delta)
                if not delta < LIMIT:
                    fail(f"document {x['doc_id']}, request {i}: log-likelihood {p[0]}, lm_eval {q[0]}")
                if name.startswith("lambada") and bool(p[1]) != bool(q[1]):
                    differ += 1
                    fail(f"document {x['doc_id']}: greedy {p[1]}, lm_eval {q[1]}")
            for metric in ("acc", "acc_norm"):
                if metric in y and float(y[metric]) != x["metrics"][metric]:
                    differ += 1
                    fail(f"document {x['doc_id']}: {metric} {x['metrics'][metric]}, lm_eval {y[metric]}")
        metrics = []
        for key in sorted(k for k in their_values if k.endswith(",none") and "_stderr" not in k):
            metric, value = key[:-5], their_values[key]
            if key not in our_values:
                fail(f"no {metric}")
                continue
            if abs(our_values[key] - value) > LIMIT * max(1.0, abs(value)):
                fail(f"{metric} {our_values[key]}, lm_eval {value}")
            stderr = their_values.get(f"{metric}_stderr,none", "N/A")
            if metric != "perplexity" and stderr != "N/A" and not math.isnan(stderr) and abs(stderr - our_values[f"{metric}_stderr,none"]) > LIMIT:
                fail(f"{metric}'s standard error {our_values[f'{metric}_stderr,none']}, lm_eval {stderr}")
            metrics.append(f"{metric} {our_values[key]:.4f} / {value:.4f}")
        unit = f"{worst:.1e}" if not isinstance(our_docs[0]["resps"][0], str) else "-"
        self.rows.append((name, str(len(our_docs)), str(requests), unit, str(differ), ", ".join(metrics)))
        print(" | ".join(self.rows[-1]), flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--nha", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--model", help="a directory or GGUF file; without it a tiny random Llama")
    p.add_argument("--lambada", help="a file with rows of lambada_openai, of which 200 are asked")
    p.add_argument("--tasks", default=",".join(HARNESS + RECALL + RULER))
    p.add_argument("--lengths", help="of recall and RULER; by default 512,1024 (nq 1024,2048) and 2048")
    p.add_argument("--limit", type=int, default=2, help="RULER samples of a task")
    p.add_argument("--backend", default="cpu")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--table", help="write the table here")
    args = p.parse_args()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    model = args.model
    if model is None:
        model = tiny(f"{args.work}/tiny")
    elif model.endswith(".gguf"):
        model = f"{args.work}/model"
        subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "from_gguf.py"), args.model, model], check=True, stdout=subprocess.DEVNULL)
    tk = AutoTokenizer.from_pretrained(model)
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=args.batch)
    data = f"{REPOSITORY}/eval/testdata/truth"
    ours, scoring, generating_tasks, manager = {}, [], [], TaskManager()
    for task in args.tasks.split(","):
        if task in HARNESS:
            path = f"{data}/{task}.jsonl"
            if task == "lambada_openai" and args.lambada:
                path = f"{args.work}/lambada.jsonl"
                with open(args.lambada) as f, open(path, "w") as g:
                    g.writelines(f.readlines()[:200])
            ours[task] = ask_nha(args, model, task, path)
            scoring.append(harness_task(manager, task, path))
        elif task in RECALL:
            lengths = args.lengths or ("1024,2048" if task == "nq" else "512,1024")
            docs = recall_docs(tk, task, data, [int(n) for n in lengths.split(",")])
            ours[task] = ask_nha(args, model, task, data, "--lengths", lengths)
            generating_tasks.append(generating(task, docs, [f"contains@{n}" for n in lengths.split(",")], contains, 48, ["\n"], doc_to_text="{{prompt}}"))
        else:
            flags = ["--lengths", args.lengths or "2048", "--limit", str(args.limit)]
            export = f"{args.work}/export.jsonl"
            subprocess.run([args.nha, "eval", model, "--tasks", task, "--export", export, *flags], check=True)
            docs = [x["doc"] for x in read(export)]
            ours[task] = ask_nha(args, model, task, "", *flags)
            generating_tasks.append(generating(task, docs, sorted({str(d["max_length"]) for d in docs}), string_match, docs[0]["max_gen_toks"], [],
                                               doc_to_text="{{input}}", gen_prefix="{{gen_prefix}}", target_delimiter=docs[0]["delimiter"]))
    c = Comparison()
    for batch, tasks in [(args.batch, scoring), *((1, [t]) for t in generating_tasks)]:  # one prompt at a time: padded keys and values are copied every step
        if tasks:
            lm.batch_size_per_gpu = batch
            for task, results in ask_harness(lm, tasks).items():
                c.task(task, ours[task], results)
    c.rows.sort(key=lambda r: list(ours).index(r[0]))
    if args.table:
        write_table(args, c)
    for f in c.failures:
        print("DIFFERENT", f)
    print(f"{len(c.rows)} tasks, {len(c.failures)} differences")
    sys.exit(1 if c.failures or not c.rows else 0)


def write_table(args, c):
    head = ("task", "documents", "requests", "largest difference of a log-likelihood", "decisions or texts that differ", "metrics, nha / lm_eval")
    lines = ["# nha eval beside lm-evaluation-harness", "",
             f"Model: {os.path.basename(args.model or 'a tiny random Llama')}, float32. lm_eval {lm_eval.__version__}, transformers {transformers.__version__}, "
             f"torch {torch.__version__}, {platform.machine()}, {datetime.date.today()}.",
             "Differences are absolute, of log-likelihoods beyond 100 nats relative to 100. Made by", "",
             "    scripts/eval-truth/run" + "".join(f" --{k} {v}" for k, v in (("model", args.model and os.path.basename(args.model)), ("lambada", args.lambada and os.path.basename(args.lambada)), ("table", "docs/results/eval-truth.md")) if v), "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(r) + " |" for r in c.rows]
    lines += ["", "The rows of all tasks but LAMBADA are those of eval/testdata/truth: made up, in the datasets' own format. RULER's samples are nha's, exported."]
    with open(args.table, "w") as f:
        f.write("\n".join(lines) + "\n")


main()

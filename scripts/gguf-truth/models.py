"""SmolLM2-135M-Instruct out of GGUF files: nha with float32 activations (backend cpu-f32) beside transformers on the decoded weights, and
with 8-bit activations (backend cpu, which takes them where a product has up to 8 rows) beside nha's float32 ones, with llama.cpp's own distance
to them next to it."""

import os
import platform
import shutil
import subprocess
import tempfile

import gguf
import numpy as np
import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM

CONTEXT = 2048
PROMPTS, PROMPT, CONTINUATION = 8, 24, 64
LOGITS_LIMIT, CLOSE, KL_LIMIT, PERPLEXITY_LIMIT = 1e-4, 0.01, 0.005, 0.005


class Nha:
    """The rows that scripts/gguf-truth/logits writes."""

    def __init__(self, a, model, ids, *flags):
        environment = os.environ | {"GOMAXPROCS": str(a.threads)}
        self.process = subprocess.Popen([a.logits, *flags, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.process.stdin.write(np.asarray(ids, np.int32).tobytes())
        self.process.stdin.close()

    def read(self, rows, width, dtype=np.float32):
        out = np.empty((rows, width), dtype)
        view = memoryview(out).cast("B")
        while len(view):
            n = self.process.stdout.readinto(view)
            if not n:
                raise SystemExit(f"{self.process.args}: {len(view)} bytes missing, exit code {self.process.wait()}")
            view = view[n:]
        return torch.from_numpy(out)

    def close(self):
        self.process.stdout.close()
        if self.process.wait() != 0:
            raise SystemExit(f"{self.process.args}: exit code {self.process.returncode}")


def tokens(path, text):
    llm = Llama(path, vocab_only=True, verbose=False)
    with open(text, encoding="utf-8") as f:
        return llm.tokenize(f.read(600_000).encode(), add_bos=False, special=False)


@torch.no_grad()
def greedy(model, prompt):
    """The most likely tokens, and how far each second choice lay behind."""
    ids, gaps, past, step = [], [], None, torch.tensor([prompt])
    for _ in range(CONTINUATION):
        out = model(input_ids=step, cache=past, use_cache=True)
        past = out.cache
        top = out.logits[0, -1].topk(2)
        ids.append(int(top.indices[0]))
        gaps.append(float(top.values[0] - top.values[1]))
        step = top.indices[:1][None]
    return ids, gaps


@torch.no_grad()
def logits_part(check, a, path, ids, row):
    """Against transformers."""
    name = os.path.basename(path)
    with tempfile.TemporaryDirectory(dir=a.work) as root:
        directory = os.path.join(root, "f32")
        subprocess.run([a.nha, "convert", path, directory, "--dtype", "f32"], check=True, stdout=subprocess.DEVNULL)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    contexts, length = 2, 256
    nha = Nha(a, path, ids[: contexts * length], "-chunk", str(length))
    error = 0.0
    for i in range(contexts):
        want = model(input_ids=torch.tensor([ids[i * length : (i + 1) * length]])).logits[0]
        got = nha.read(length, want.shape[1])
        error = max(error, float((got - want).abs().max() / want.abs().max()))
    nha.close()
    check(f"{name}: logits", error <= LOGITS_LIMIT, f"error {error:.1e}, limit {LOGITS_LIMIT:.0e}")
    prompts = [ids[1000 * (i + 1) :][:PROMPT] for i in range(PROMPTS)]
    nha = Nha(a, path, sum(prompts, []), "-chunk", str(PROMPT), "-greedy", str(CONTINUATION))
    equal = wrong = 0
    for prompt in prompts:
        want, gaps = greedy(model, prompt)
        got = nha.read(CONTINUATION, 2, np.int32)[:, 0].tolist()
        different = [i for i in range(CONTINUATION) if got[i] != want[i]]
        equal += not different
        wrong += bool(different) and gaps[different[0]] >= CLOSE
    nha.close()
    check(f"{name}: greedy continuations", wrong == 0, f"{equal} of {PROMPTS} equal, {PROMPTS - equal - wrong} part at two tokens closer than {CLOSE}, {wrong} differ")
    row["logits"], row["greedy"] = f"{error:.1e}", f"{equal} of {PROMPTS}"


class Distance:
    """Sums of the divergence from a reference, and of log losses."""

    def __init__(self):
        self.kl = self.loss = self.reference = 0.0
        self.rows = self.predicted = self.same = 0

    def add(self, p, other, targets):
        """Rows of the reference's log probabilities and another's logits."""
        q = other.log_softmax(-1)
        self.kl += float((p.exp() * (p - q)).sum())
        self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.rows += len(p)
        n = torch.arange(len(targets))
        self.reference -= float(p[n, targets].sum())
        self.loss -= float(q[n, targets].sum())
        self.predicted += len(targets)

    def mean(self):
        return self.kl / self.rows, float(np.exp(self.loss / self.predicted)), float(np.exp(self.reference / self.predicted)), self.same / self.rows


def kl_part(check, a, path, ids, row):
    """8-bit activations against float32 ones, and llama.cpp's against the same."""
    name = os.path.basename(path)
    ids = ids[: a.tokens]
    if not quantised(path):
        return  # no activation is rounded
    reference, ours = Nha(a, path, ids), Nha(a, path, ids, "-backend", "cpu", "-step", "8")
    llm = Llama(path, n_ctx=CONTEXT, n_batch=CONTEXT, n_ubatch=512, n_threads=a.threads, n_threads_batch=a.threads, logits_all=True, verbose=False)
    nha, llama = Distance(), Distance()
    for i in range(0, len(ids), CONTEXT):
        context = ids[i : i + CONTEXT]
        want = reference.read(len(context), llm.n_vocab())
        targets = torch.tensor(context[1:])
        got = ours.read(len(context), llm.n_vocab())
        llm.reset()
        llm.eval(context)
        scores = torch.from_numpy(llm.scores[: len(context)])
        for j in range(0, len(context), 128):
            rows = slice(j, j + 128)
            p = want[rows].log_softmax(-1)
            nha.add(p, got[rows], targets[rows])
            llama.add(p, scores[rows], targets[rows])
    reference.close()
    ours.close()
    kl, perplexity, base, same = nha.mean()
    off = perplexity / base - 1
    their_kl, theirs, _, their_same = llama.mean()
    check(f"{name}: mean divergence", kl <= KL_LIMIT, f"{kl:.2e}, limit {KL_LIMIT}; llama.cpp {their_kl:.2e}; same first choice {same:.2%}, llama.cpp {their_same:.2%}")
    check(f"{name}: perplexity", abs(off) <= PERPLEXITY_LIMIT, f"{perplexity:.4f}, {off:+.3%} of {base:.4f}; llama.cpp {theirs:.4f}, {theirs / base - 1:+.3%}")
    row["tokens"] = str(len(ids))
    row["kl"], row["their kl"] = f"{kl:.1e}", f"{their_kl:.1e}"
    row["base"], row["ppl"], row["their ppl"] = f"{base:.3f}", f"{perplexity:.3f} ({off:+.3%})", f"{theirs:.3f} ({theirs / base - 1:+.3%})"


def quantised(path):
    return any(len(t.shape) == 2 and t.tensor_type.name not in ("F32", "F16", "BF16") for t in gguf.GGUFReader(path).tensors)


def stored(path):
    """The types of a file's matrices, by share of the parameters."""
    n = {}
    for t in gguf.GGUFReader(path).tensors:
        if len(t.shape) == 2:
            n[t.tensor_type.name] = n.get(t.tensor_type.name, 0) + t.n_elements
    total = sum(n.values())
    return ", ".join(f"{k} {v / total:.0%}" for k, v in sorted(n.items(), key=lambda x: -x[1]))


COLUMNS = {"file": "file", "stored": "matrices", "logits": "logits' error", "greedy": "continuations equal", "tokens": "tokens", "kl": "KL, nha", "their kl": "KL, llama.cpp",
           "base": "perplexity, float32", "ppl": "nha", "their ppl": "llama.cpp"}


def write_table(out, rows):
    """Writes the rows, and those of other files that the table has already."""
    old = {}
    if os.path.exists(out):
        with open(out) as f:
            cells = [[c.strip() for c in l.strip().strip("|").split("|")] for l in f if l.startswith("|")]
        if cells and cells[0] == list(COLUMNS.values()):
            old = {c[0]: dict(zip(COLUMNS, c)) for c in cells[2:]}
    for row in rows:
        old[row["file"]] = old.get(row["file"], {}) | row
    rows = [old[k] for k in sorted(old)]

    def output(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor()) if os.path.exists("/proc/cpuinfo") else platform.processor()
    with open(out + ".new", "w") as f:
        f.write(f"""# GGUF and quantised weights

SmolLM2-135M-Instruct in the types of GGUF, all made by llama-quantize from the published Q4_1 file. `scripts/gguf-truth/run --full` made
this table; it exits 1 where a limit is passed. {cpu}, {os.cpu_count()} cores, {output("go", "version").split()[2]}, commit {output("git", "rev-parse", "--short", "HEAD")}.

- Blocks are decoded to the bit as gguf-py and llama.cpp's C functions decode them (`scripts/gguf-truth/run` does the same with
  random blocks of all types and compares the blocks that `nha convert --quantize` writes, in half a minute).
- logits' error: float32 activations (`--backend cpu-f32`), largest difference over largest logit, against transformers in float32 on the
  decoded weights, 2 x 256 tokens. Limit {LOGITS_LIMIT:.0e}.
- continuations: {PROMPTS} prompts of {PROMPT} tokens continued greedily by {CONTINUATION}, token by token, against transformers. The others part where the first two choices lie
  closer than {CLOSE}.
- KL, where weights are quantised: mean divergence of the distributions with 8-bit activations from those with float32 activations on the same weights, on so many tokens
  of WikiText-2 (validation) in contexts of {CONTEXT}, read 8 at a time from a state as in decoding. Limit {KL_LIMIT}. llama.cpp's own distance from the same float32 ones beside it.
- perplexity on the same tokens, and its change by the activations. Limit {PERPLEXITY_LIMIT:.1%}.

""")
        f.write("| " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * len(COLUMNS) + "|\n")
        for row in rows:
            f.write("| " + " | ".join(row.get(k, "") for k in COLUMNS) + " |\n")
    shutil.move(out + ".new", out)


def run(check, a, parts):
    torch.set_num_threads(a.threads)
    ids = tokens(a.files[0], a.text)
    rows = []
    for path in a.files:
        row = {"file": os.path.basename(path).removesuffix(".gguf").split(".")[-1], "stored": stored(path)}
        if "logits" in parts:
            logits_part(check, a, path, ids, row)
        if "kl" in parts:
            kl_part(check, a, path, ids, row)
        rows.append(row)
        if a.out:
            write_table(a.out, rows)

"""The driver of scripts/bench-cpu: runs nha and its peers by turns and writes docs/results/cpu.md.

A part is measured by a function that returns Markdown. The file keeps the parts that are not run now. Where a figure is measured
in rounds, each contender's is the better of its rounds' medians, so that what else the machine did does not decide.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

SIZES = {
    "small": dict(hidden_size=256, layers=6, heads=4, intermediate_size=704, vocabulary=4096, batch=8, context=256),
    "large": dict(hidden_size=512, layers=6, heads=8, intermediate_size=1408, vocabulary=8192, batch=4, context=512),
}
HEAD_ROWS = 512  # rows of logits that exist at a time in nha's loss


class Peer:
    """A process of bench-cpu-peers.py."""

    def __init__(self, name):
        # OpenBLAS settings made for older versions slow this one.
        env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "bench-cpu-peers.py"), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.name = name

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            raise SystemExit(f"bench-cpu: the peer {self.name} ended while it was asked {request}")
        return json.loads(reply)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


class Bench:
    def __init__(self, options):
        self.options, self.quick = options, options.quick
        facts = {}
        for line in self.run("doctor", "--json").splitlines():
            f = json.loads(line)
            facts[f.get("fact")] = f.get("value")
        self.facts = facts
        self.sets = facts["instruction sets"].split(" (")[0].split(", ")  # best last
        self.best = self.sets[-1]
        self.fast = [s for s in self.sets if s != "generic"] or ["generic"]

    def run(self, *args, cpu=None):
        env = dict(os.environ, **({"NHA_CPU": cpu} if cpu else {}))
        return subprocess.run([self.options.nha, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True, env=env).stdout

    def nha(self, verb, *args, cpu):
        """Rows of `nha bench verb`."""
        return [json.loads(line) for line in self.run("bench", verb, "--backend", "cpu", "--json", *args, cpu=cpu).splitlines()]

    def rounds(self):
        """The instruction sets of each round: all, then the best once more."""
        return [self.fast] if self.quick else [self.fast, [self.best]]

    # --- gemm

    def gemm_shapes(self):
        """(what, op, m, n, k): cubes, and the products of the models' linear layers, forward (nt) and backward (nn, tn)."""
        if self.quick:
            return [("cube", "nn", 64, 64, 64), ("cube", "nn", 512, 512, 512), ("small, up", "nt", 32, 704, 256)]
        shapes = [("cube", op, n, n, n) for n in (256, 512, 1024, 2048) for op in ("nn", "nt", "tn")]
        for size, s in SIZES.items():
            tokens, hidden, inner = s["batch"] * s["context"], s["hidden_size"], s["intermediate_size"]
            for layer, rows, width, out in (("q k v o", tokens, hidden, hidden), ("gate, up", tokens, hidden, inner),
                                            ("down", tokens, inner, hidden), ("head", HEAD_ROWS, hidden, s["vocabulary"])):
                shapes += [(f"{size}, {layer}", "nt", rows, out, width), (f"{size}, {layer}", "nn", rows, width, out),
                           (f"{size}, {layer}", "tn", out, width, rows)]
        return shapes

    def gemm(self):
        shapes, seconds = self.gemm_shapes(), 0.05 if self.quick else 0.25
        best = {}

        def note(who, shape, gflops):
            best[who, shape] = max(best.get((who, shape), 0), gflops)

        def ours(cpu, shapes, seconds):
            for op in ("nn", "nt", "tn"):
                mine = [s for s in shapes if s[1] == op]
                if not mine:
                    continue
                rows = self.nha("gemm", "--op", op, "--shapes", ",".join("x".join(map(str, s[2:])) for s in mine), "--seconds", seconds, cpu=cpu)
                for s, row in zip(mine, rows, strict=True):
                    note(cpu, s, row["gflops"])

        with Peer("numpy") as numpy, Peer("torch") as torch:
            peers = {"OpenBLAS": numpy, "PyTorch": torch}
            about = [p.ask(about=True)["about"] for p in peers.values()]
            for sets in self.rounds():
                for name, peer in peers.items():
                    for s in shapes:
                        note(name, s, peer.ask(op=s[1], m=s[2], n=s[3], k=s[4], seconds=seconds)["gflops"])
                for cpu in sets:
                    ours(cpu, shapes, seconds)
        if self.best != "generic":
            ours("generic", [s for s in shapes if s[0] == "cube" and s[2] <= 512], 0.05)
        columns = [*peers, *dict.fromkeys(["generic", *self.fast])]
        lines = []
        for s in shapes:
            peer = max(best[p, s] for p in peers)
            lines.append([s[0], s[1], *s[2:], *(f"{best[c, s]:.1f}" if (c, s) in best else "" for c in columns),
                          *(f"{best[c, s] / peer:.2f}" for c in self.fast)])
        worst = [min(max(best[c, s] for c in self.fast) / max(best[p, s] for p in peers) for s in group)
                 for group in ([s for s in shapes if s[0] == "cube" and s[2] >= 512], [s for s in shapes if s[0] != "cube"])]
        return "\n".join([
            "Float32 matrix products, GFLOP/s; the last columns are nha over the better of OpenBLAS and PyTorch.",
            "nt is a layer's forward, nn and tn its backward; the head is in chunks of 512 rows.", "", *about_list(about),
            table(["", "op", "m", "n", "k", *columns, *(f"{c} / best peer" for c in self.fast)], lines), "",
            f"Least ratio of the best instruction set: {worst[0]:.2f} over cubes from 512 on, {worst[1]:.2f} over the models' shapes."])

    # --- train

    def sizes(self):
        if not self.quick:
            return SIZES
        tiny = dict(SIZES["small"], layers=1, vocabulary=256, batch=1, context=64)
        return {"tiny": tiny}

    def size_flags(self, s):
        return [x for key, value in s.items() for x in ("--" + key.replace("_", "-"), value)]

    def train(self):
        out = ["Training steps (forward, backward, AdamW, float32; nha also finds the gradient's norm), tokens/s. The Llama is Hugging Face's",
               "with scaled_dot_product_attention and fused AdamW, of the same shape as nha's transformer; nha's NHA has W = 32, M = 64 and its",
               "gates' parameters on top; generic, plain Go, takes a quarter of the batch. mfu is 6 N tokens/s over nha's own best product of 2048",
               "cubed. First step: from nothing to its end, torch.compile's compilation included."]
        for name, s in self.sizes().items():
            out += ["", self.train_size(name, s)]
        return "\n".join(out)

    def train_size(self, name, s):
        seconds = 0.1 if self.quick else 1.5 if name == "small" else 3
        tokens, best, first, extra = s["batch"] * s["context"], {}, {}, {}
        with Peer("llama") as eager, Peer("llama-compiled") as compiled:
            peers = {"HF Llama, eager": eager, "HF Llama, torch.compile": compiled}
            for who, peer in peers.items():
                reply = peer.ask(size=s)
                first[who], extra[who] = reply["first_step_s"], reply
            for sets in self.rounds():
                for cpu in sets:
                    for model in ("transformer", "nha"):
                        who = f"nha {model}, {cpu}"
                        row, = self.nha("train", "--model", model, *self.size_flags(s), "--seconds", seconds, cpu=cpu)
                        if row["tokens_per_s"] > best.get(who, 0):
                            best[who], extra[who] = row["tokens_per_s"], row
                        first.setdefault(who, row["first_step_s"])
                for who, peer in peers.items():
                    best[who] = max(best.get(who, 0), tokens / peer.ask(seconds=seconds)["step_ms"] * 1e3)
        if self.best != "generic" and name != "large":  # a step of the large one takes plain Go a minute
            for model in ("transformer", "nha"):
                who = f"nha {model}, generic"
                part = dict(s, batch=max(1, s["batch"] // 4))  # plain Go is slow, at any batch
                row, = self.nha("train", "--model", model, *self.size_flags(part), "--seconds", 0, cpu="generic")
                best[who], first[who], extra[who] = row["tokens_per_s"], row["first_step_s"], row
        peak = max(e.get("peak_gflops", 0) for e in extra.values())
        top = max(best[p] for p in peers)
        lines = [[who, f"{extra[who]['parameters'] / 1e6:.2f}M", f"{v:.0f}", f"{v / top:.2f}", f"{6 * extra[who]['parameters'] * v / peak / 1e9:.2f}", f"{first[who]:.1f}"]
                 for who, v in best.items()]
        ratio = best[f"nha nha, {self.best}"] / best[f"nha transformer, {self.best}"]
        shape = "hidden {hidden_size}, {layers} layers, {heads} heads, inner {intermediate_size}, vocabulary {vocabulary}, batch {batch} x {context}".format(**s)
        return "\n".join([f"**{name}**: {shape}", "",
                          table(["", "parameters", "tokens/s", "/ better PyTorch", "mfu", "first step, s"], lines), "",
                          f"NHA runs at {ratio:.2f} of nha's own transformer. The peak is {peak:.0f} GFLOP/s."])

    # --- operator

    def operator(self):
        lengths = [128, 256] if self.quick else [512, 1024, 2048, 8192, 32768, 131072]
        seconds, limit = (0.02, 60) if self.quick else (0.4, 60)
        ours, theirs = {}, {}
        with Peer("sdpa") as peer:
            for t in lengths:
                for cpu in dict.fromkeys([*self.fast, "generic"]):
                    if cpu == "generic" and t > 2048 and self.best != "generic":
                        continue
                    ours[cpu, t], = self.nha("operator", "--T", t, "--Hq", 8, "--K", 64, "--M", 64, "--W", 64, "--seconds", seconds, cpu=cpu)
                last = max(theirs, default=None)
                expected = sum(theirs[last].values()) / 1e3 * (t / last) ** 2 if last else 0
                if expected <= limit:
                    theirs[t] = peer.ask(T=t, heads=8, dim=64, seconds=seconds, warm=expected < 2)
        total = lambda row: row["forward_ms"] + row["backward_ms"]
        lines = []
        for t in lengths:
            for cpu in dict.fromkeys([*self.fast, "generic"]):
                if (cpu, t) in ours:
                    r = ours[cpu, t]
                    lines.append([t, cpu, f"{r['forward_ms']:.1f}", f"{r['backward_ms']:.1f}", f"{1e6 * total(r) / t:.0f}",
                                  *((f"{theirs[t]['forward_ms']:.1f}", f"{theirs[t]['backward_ms']:.1f}", f"{total(theirs[t]) / total(r):.2f}") if t in theirs else ("", "", ""))])
        out = ["The operator, B1, 8 heads of 64, M64, W64, float32, beside PyTorch's causal scaled_dot_product_attention (left out above", f"{limit} s).", "",
               table(["T", "", "forward, ms", "backward, ms", "ns/token", "SDPA forward", "SDPA backward", "speed-up"], lines)]
        overtaken = [t for t in lengths if t in theirs and total(ours[self.best, t]) < total(theirs[t])]
        out += ["", f"{self.best}: the shortest length measured at which nha is faster is {overtaken[0] if overtaken else 'beyond these'}."]
        if not self.quick:
            per = {t: total(ours[self.best, t]) / t for t in lengths}
            out[-1] += f" Time per token at 128K over that at 2K: {per[131072] / per[2048]:.2f}."
        return "\n".join(out)

    # --- memory

    def memory(self):
        name, s = list(self.sizes().items())[-1]
        grown = {}
        with Peer("llama") as peer:
            grown["HF Llama, eager"] = peer.ask(size=s, more=2)["peak_bytes"]
        for model in ("transformer", "nha"):
            row, = self.nha("train", "--model", model, *self.size_flags(s), "--seconds", 0, cpu=self.best)
            grown[f"nha {model}, {self.best}"] = row["peak_bytes"]
        base = grown["HF Llama, eager"]
        return "\n".join([
            f"Growth of resident memory over three training steps of the {name} model: the peak less what there was before the first step.",
            "The parameters count on neither side; gradients, AdamW's moments and activations do on both.", "",
            table(["", "MiB", "/ PyTorch"], [[who, f"{v / 2**20:.0f}", f"{v / base:.2f}"] for who, v in grown.items()])])

    # --- decode

    def decode(self):
        size, seconds = ("small", 0.05) if self.quick else ("135m", 1)
        rows = {}
        for cpu in dict.fromkeys([*self.fast, "generic"]):
            slow = cpu == "generic" and self.best != "generic"
            rows[cpu] = self.nha("decode", "--model", "nha", "--size", size, "--dtype", "float32,bfloat16",
                                 "--depth", ",".join(["128,131072"] * (1 if slow or self.quick else 3)), "--seconds", seconds / (5 if slow else 1), cpu=cpu)
        bandwidth = max(r["bandwidth_bytes_per_s"] for cpu in rows for r in rows[cpu])
        lines, flat = [], []
        for cpu in rows:
            for dtype in ("float32", "bfloat16"):
                speed = {}
                for depth in (128, 131072):
                    r = max((r for r in rows[cpu] if r["dtype"] == dtype and r["depth"] == depth), key=lambda r: r["tokens_per_s"])
                    speed[depth] = r["tokens_per_s"]
                    lines.append([cpu, dtype, depth, f"{r['step_ms']:.2f}", f"{r['tokens_per_s']:.1f}", f"{r['read_bytes'] / 2**20:.0f}",
                                  f"{r['read_bytes'] * r['tokens_per_s'] / bandwidth:.2f}", f"{r['state_bytes'] / 2**20:.1f}", f"{r['resident_bytes'] / 2**20:.0f}"])
                flat.append(f"{cpu} {dtype}: {speed[131072] / speed[128]:.3f}")
        return "\n".join([
            f"Decoding with an NHA model of the size {size}, one session. A step reads every weight but the embedding, and the state. The share is of",
            f"{bandwidth / 1e9:.1f} GB/s, the best of the streaming sums in the same run.", "",
            table(["", "weights", "depth", "step, ms", "tokens/s", "MiB read", "share", "state, MiB", "resident, MiB"], lines), "",
            "Speed at depth 131072 over that at 128: " + "; ".join(flat) + "."])

    # --- demo

    def demo(self):
        steps = ["--recall-steps", 2, "--text-steps", 2] if self.quick else []
        with tempfile.TemporaryDirectory(dir=self.options.work) as out:
            start = time.monotonic()
            self.run("demo", "--out", os.path.join(out, "demo"), *steps, cpu=self.best)
            seconds = time.monotonic() - start
        return f"`nha demo` takes {seconds:.0f} s with {self.best}" + (f" and {' '.join(map(str, steps))}." if steps else ".")


def about_list(lines):
    return [*(f"- {line}" for line in lines), ""]


def table(head, rows):
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in [head, ["---"] * len(head), *rows])


PARTS = {"gemm": "Matrix products", "train": "Training steps", "operator": "The operator", "memory": "Memory of training", "decode": "Decoding", "demo": "The demo"}


def stamp(bench, part):
    """Where, when and what a part was measured on, and how to repeat it."""
    git = lambda *args: subprocess.run(["git", "-C", ROOT, *args], stdout=subprocess.PIPE, text=True).stdout.strip()
    commit = git("rev-parse", "--short", "HEAD") or "no commit"
    if git("status", "--porcelain", "--untracked-files=no"):
        commit += " with changes"
    return (f"{bench.facts['processor']}, {bench.facts['processors'].split(',')[0]} processors, {'; '.join(bench.sets)}; {platform.system()} {platform.release()}; "
            f"{bench.facts['system'].split(', ')[1]}; {datetime.date.today()}; commit {commit}; load {os.getloadavg()[0]:.1f} before. "
            f"`scripts/bench-cpu {part}`")


def update(path, sections):
    """Writes the sections, keeping those of other parts that the file has."""
    old = {}
    if os.path.exists(path):
        with open(path) as f:
            old = dict(re.findall(r"<!-- part (\w+) -->\n(.*?)\n<!-- end \1 -->", f.read(), re.S))
    old.update(sections)
    text = "# Speed on a CPU\n\nMade by `scripts/bench-cpu`: nha and its peers by turns, in one run on one machine. Ratios are what counts; machines differ.\n"
    for part in PARTS:
        if part in old:
            text += f"\n<!-- part {part} -->\n{old[part]}\n<!-- end {part} -->\n"
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".part", "w") as f:
        f.write(text)
    os.replace(path + ".part", path)


def main():
    p = argparse.ArgumentParser(prog="scripts/bench-cpu")
    p.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + "; none: all")
    p.add_argument("--out", help="the file to write or update; default docs/results/cpu.md")
    p.add_argument("--quick", action="store_true", help="tiny shapes: shows that the script works, and no speed")
    p.add_argument("--nha", required=True, help=argparse.SUPPRESS)
    p.add_argument("--work", required=True, help=argparse.SUPPRESS)
    o = p.parse_args()
    for part in o.parts:
        if part not in PARTS:
            p.error(f"unknown part {part!r}: choose from {', '.join(PARTS)}")
    path = o.out or (os.path.join(tempfile.gettempdir(), "nha-bench-cpu-quick.md") if o.quick else os.path.join(ROOT, "docs", "results", "cpu.md"))
    bench = Bench(o)
    for part in o.parts or PARTS:
        head, start = stamp(bench, part), time.monotonic()
        print(f"{part} ...", file=sys.stderr, flush=True)
        text = f"## {PARTS[part]}\n\n{head}\n\n{getattr(bench, part)()}"
        update(path, {part: text})
        print(f"{text}\n\n({part}: {time.monotonic() - start:.0f} s)\n", flush=True)
    print(path, file=sys.stderr)


if __name__ == "__main__":
    main()

"""Stellate beside llama.cpp: one machine, one run, the same GGUF files (Llama-3.2-1B's shape, random weights, q8_0 and q4_k).

Takes the path of a `llama-bench` that you built (how: compare_llamacpp.md), writes the files once, and measures in turns:
prefill of empty contexts, and decoding behind short and long ones, on all cores, every measurement in a process of its own.

  venv/bin/python ops/bench/compare_llamacpp.py --llama-bench path/to/llama-bench --json llamacpp.json

llama-bench makes up its own token ids and cannot be given any; the time does not depend on them.
"""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import engines
from engines import Stellate, Trouble, best, say, table

GIB = 2**30


def arguments():
    parser = engines.common_arguments(__doc__)
    parser.add_argument("--llama-bench", metavar="PATH", required=True, help="the program that you built")
    parser.add_argument("--formats", default="q8_0,q4_k", metavar="NAME,…", help="default: %(default)s")
    parser.add_argument("--prefill", type=engines.lengths, metavar="N,…", help="tokens; default: 512,8192")
    parser.add_argument("--depth", type=engines.lengths_from_0, metavar="N,…", help="decode after; default: 0,16384")
    parser.add_argument("--llama-args", default="", metavar="ARGS", help='more for llama-bench, as in "-fa 1 -ub 1024"')
    parser.add_argument("--kv", choices=["bf16", "f32", "q8"], default="bf16", help="Stellate's; llama.cpp has f16")
    args = parser.parse_args()
    args.repeat = args.repeat or (1 if args.quick else 3)
    args.answer_tokens = args.answer_tokens or (9 if args.quick else 33)
    args.prefill = args.prefill or ([128, 512] if args.quick else [512, 8_192])
    args.depth = args.depth or ([0, 512] if args.quick else [0, 16_384])
    if args.answer_tokens < 2:
        parser.error("--answer-tokens: at least 2 are needed for a time between two")
    return args


class LlamaBench:
    """llama.cpp's own benchmark."""

    def __init__(self, args):
        self.binary, self.args = Path(args.llama_bench).resolve(), args
        if not self.binary.is_file():
            raise Trouble(f"there is no program {self.binary}: see compare_llamacpp.md for how to build llama-bench")

    def run(self, model, *wanted):
        """One repeat, after llama-bench's own warm-up: the entries of its report."""
        command = [self.binary, "-m", model, "-t", self.args.threads, "-r", 1, "-o", "json", *wanted]
        output, peak = engines.run([*map(str, command), *shlex.split(self.args.llama_args)], "llama-bench")
        try:
            return json.loads(output), peak
        except ValueError as error:
            raise Trouble(f"llama-bench gave no JSON ({error}); is it too old for -d? It said: {output[:400]}") from error

    def measure(self, model):
        """`{(kind, tokens): tokens/s or ms per token}`, peak memory, and what llama-bench says of itself."""
        joined = lambda numbers: ",".join(map(str, numbers))
        prefill, first = self.run(model, "-p", joined(self.args.prefill), "-n", 0)
        decode, second = self.run(model, "-p", 0, "-n", self.args.answer_tokens - 1, "-d", joined(self.args.depth))
        figures = {("prefill", entry["n_prompt"]): entry["avg_ts"] for entry in prefill}
        figures |= {("decode", entry["n_depth"]): 1e3 / entry["avg_ts"] for entry in decode}
        return figures, max(first or 0, second or 0) or None, decode[0]


def measure_stellate(stellate, model, ids, args):
    """The same of Stellate."""
    # A context has one token at least, and so has the question behind it: "0" is decoding from the third token on.
    depths = {max(depth, 1): depth for depth in args.depth}
    prefill, first = stellate.bench(model, ids, args.prefill, 2, "--kv", args.kv)
    decode, second = stellate.bench(model, ids, sorted(depths), args.answer_tokens, "--kv", args.kv)
    figures = {("prefill", m["context_tokens"]): m["encode_tokens_per_s"] for m in prefill["measurements"]}
    for measured in decode["measurements"]:
        figures["decode", depths[measured["context_tokens"]]] = 1e3 * measured["token_s"]["best"]
    return figures, max(first or 0, second or 0) or None, decode


def rows_of(formats, taken):
    """Of the table, and the same for programs. A ratio above 1 means that Stellate is ahead."""
    cells, facts = [], []
    for kind in formats:
        theirs, ours = taken[kind]["llama.cpp"], taken[kind]["stellate"]
        for what, tokens in theirs[0]["figures"]:
            rate = what == "prefill"
            one, two = (best([each["figures"][what, tokens] for each in side], rate) for side in (theirs, ours))
            ratio = two["best"] / one["best"] if rate else one["best"] / two["best"]
            unit, where = ("tokens/s", f"{tokens:,} tokens") if rate else ("ms/token", f"after {tokens:,}")
            show = (lambda x: f"{x:,.0f}") if rate else (lambda x: f"{x:.1f}")
            cells.append([f"{kind} {what}, {unit}", where, show(one["best"]), show(two["best"]), f"{ratio:.2f} ×"])
            entry = {"format": kind, "what": what, "tokens": tokens, "unit": unit}
            facts.append({**entry, "llama.cpp": one, "stellate": two, "stellate_ahead": ratio})
        one, two = (max(each["peak_bytes"] or 0 for each in side) for side in (theirs, ours))
        if one and two:
            ratio = two / one
            cells.append([f"{kind} peak memory, GiB", "", f"{one / GIB:.2f}", f"{two / GIB:.2f}", f"{ratio:.2f} × as much"])
            facts.append({"format": kind, "what": "peak_bytes", "llama.cpp": one, "stellate": two})
    return cells, facts


def compare():
    args = arguments()
    missing = [name for name in ("numpy", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        wanted = Path(__file__).with_name("requirements.txt")
        raise Trouble(f"{', '.join(missing)} not found by {sys.executable}: pip install numpy gguf, as in {wanted}")
    import gguf_1b
    import llama_1b

    formats = args.formats.split(",")
    if unknown := set(formats) - set(gguf_1b.FORMATS):
        raise Trouble(f"--formats: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(gguf_1b.FORMATS)}")
    llama_bench, stellate, place = LlamaBench(args), Stellate(args), engines.machine()
    engines.warn_if_busy(place)
    folder = Path(args.data).resolve()
    files = {kind: folder / f"llama-1b-{args.seed}-{kind}.gguf" for kind in formats}
    for kind, path in files.items():
        gguf_1b.write(path, kind, args.seed, say)
    ids_file = folder / "ids-llamacpp.json"
    ids_file.write_text(json.dumps(llama_1b.token_ids(max(args.prefill + args.depth) + 8, args.seed)))
    taken = {kind: {"llama.cpp": [], "stellate": []} for kind in formats}
    facts = {}
    for turn in range(args.repeat):
        for kind, path in files.items():
            sides = {
                "llama.cpp": lambda: llama_bench.measure(path),
                "stellate": lambda: measure_stellate(stellate, path, ids_file, args),
            }
            for name, measure in sides.items():
                figures, peak, facts[name] = measure()
                taken[kind][name].append({"figures": figures, "peak_bytes": peak})
                told = ", ".join(f"{what} {tokens:,}: {value:,.1f}" for (what, tokens), value in figures.items())
                say(f"round {turn + 1}/{args.repeat}, {kind}, {name}: {told} (tokens/s; ms/token)")
    cells, figures = rows_of(formats, taken)
    report = {
        "machine": place,
        "threads": args.threads,
        "repeat": args.repeat,
        "answer_tokens": args.answer_tokens,
        "llama_args": args.llama_args,
        "llama.cpp": {k: v for k, v in facts["llama.cpp"].items() if not k.startswith(("avg", "stddev", "samples"))},
        "stellate": {key: facts["stellate"][key] for key in ("machine", "model", "node")},
        "figures": figures,
    }
    engines.finish(args, report, text_of(report, cells))


def text_of(report, cells):
    place, theirs, ours = report["machine"], report["llama.cpp"], report["stellate"]
    known = lambda key: theirs.get(key, "unknown")
    return "\n".join([
        *engines.where(place),
        f"theirs:  llama.cpp {known('build_commit')} (build {known('build_number')}), backends {known('backends')}, KV "
        f"{known('type_k')}, flash attention {known('flash_attn')}, ubatch {known('n_ubatch')} {report['llama_args']}",
        f"ours:    stellate {ours['machine']['version']}, {ours['machine']['backend']}, KV {ours['node']['kv_format']}, "
        "exact, no speculation",
        f"run:     {report['threads']} threads each, in turns, best of {report['repeat']}; decode: mean of "
        f"{report['answer_tokens'] - 1} steps",
        "",
        table(["", "context", "llama.cpp", "Stellate", "Stellate is ahead by"], cells),
    ])


if __name__ == "__main__":
    engines.main(compare)

"""What the comparisons share: running an engine in a process of its own while its memory is watched, `stellate bench`
as one of them, the machine, and tables. What is compared with what is in `compare_*.py`.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Memory is read this often: a peak that Linux recorded is lost only with the process, or when the process resets it.
POLL_S = 0.1
# Neighbours that use more than this share of the machine, looked at for this long, spoil the figures.
BUSY_SHARE, BUSY_LOOK_S = 0.05, 2.0


class Trouble(Exception):
    """What keeps a comparison from running; the text says what to do."""


def say(text):
    """Progress, on standard error: standard output has the result alone."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def cores():
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run(command, what, env=None, cwd=None):
    """Runs `command`; gives its standard output and the highest resident memory of its life in bytes (None if unknown)."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=env, cwd=cwd)
        peak, done = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
        watcher.start()
        try:
            output = process.stdout.read()
        finally:
            # Also upon Ctrl-C: no engine is left running.
            if process.poll() is None and sys.exc_info()[0]:
                process.kill()
            process.stdout.close()
            code = process.wait()
            done.set()
            watcher.join()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if code != 0:
        tail = "\n  ".join(said.splitlines()[-15:])
        end = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
        raise Trouble(f"{what} {end}: {' '.join(map(str, command))}\n  {tail}")
    return output.decode(), peak[0] or None


def _watch(pid, peak, done):
    while not done.wait(POLL_S):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.M):
            peak[0] = max(peak[0], 1024 * int(found.group(1)))


class Stellate:
    """The program under test."""

    def __init__(self, args):
        self.binary, self.threads, self.block_tokens = Path(args.stellate).resolve(), args.threads, args.block_tokens
        if not self.binary.is_file():
            raise Trouble(
                f"there is no program {self.binary}: build it (cargo build --release), or name it with --stellate"
            )
        # Settings of this shell or folder are not what is measured; the choice of instructions may be.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STELLATE_") or k == "STELLATE_CPU_ISA"}
        self.env = {**kept, "STELLATE_CPU_ISA": args.isa} if args.isa else kept
        self.folder = tempfile.TemporaryDirectory()

    def command(self, *arguments, model):
        text = subprocess.run([self.binary, "bench", "--help"], capture_output=True, text=True, check=False).stdout
        if "--ids" not in text:
            raise Trouble(f"{self.binary} has no `bench --ids`: build a newer one")
        return [self.binary, *arguments, "--model", Path(model).resolve(), "--threads", str(self.threads)]

    def bench(self, model, ids, tokens, answer_tokens, *more):
        """`exact` contexts of the given lengths, in one process: the report, and its peak memory in bytes."""
        arguments = ["bench", "--json", "--attention", "exact", "--block-tokens", self.block_tokens, "--repeat", 1]
        arguments += ["--tokens", ",".join(map(str, tokens)), "--ids", Path(ids).resolve()]
        arguments += ["--query-tokens", 1, "--max-tokens", answer_tokens, *more]
        output, peak = run(self.command(*map(str, arguments), model=model), "stellate", self.env, self.folder.name)
        return json.loads(output), peak

    def logits(self, model, context, question):
        """Logits of every token of `question` behind `context`, `[tokens, vocab]`."""
        import numpy

        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        line = {"index": "check", "context_ids": context, "turns": [question], "attention": "exact"}
        (folder / "in.jsonl").write_text(json.dumps(line))
        arguments = ["batch", "--input", "in.jsonl", "--output", "out.jsonl", "--logits", "out.safetensors"]
        arguments += ["--ignore-eos", "--max-tokens", "1", "--guess-tokens", "0", "--block-tokens", "64"]
        run(self.command(*arguments, model=model), "stellate batch", self.env, folder)
        data = (folder / "out.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        tensor = json.loads(data[8 : 8 + size])["check.turn0.query_logits"]
        first, end = tensor["data_offsets"]
        return numpy.frombuffer(data[8 + size + first : 8 + size + end], "<f4").reshape(tensor["shape"])


def common_arguments(description):
    """A parser with what every comparison takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stellate", metavar="PATH", default=REPOSITORY / "target/release/stellate", help="default: %(default)s"
    )
    parser.add_argument(
        "--data", metavar="DIR", default=REPOSITORY / "target/bench-data", help="for weights; default: %(default)s"
    )
    parser.add_argument("--repeat", type=positive, metavar="N", help="rounds; the best of each figure counts")
    parser.add_argument("--answer-tokens", type=positive, metavar="N", help="tokens decoded after each context")
    parser.add_argument("--threads", type=positive, metavar="N", default=cores(), help="of each engine; default: all")
    parser.add_argument("--block-tokens", type=positive, metavar="N", default=2048, help="default: %(default)s")
    parser.add_argument("--isa", metavar="NAME", help="STELLATE_CPU_ISA, as in amx; default: Stellate's own choice")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="short contexts, one round: does everything work?")
    parser.add_argument("--json", metavar="FILE", help="also write everything that was measured; - prints it instead")
    return parser


def positive(text):
    """A number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def lengths(text):
    """Numbers above 0 with commas between them, sorted."""
    return sorted({positive(part) for part in text.split(",")})


def lengths_from_0(text):
    """The same, with 0 among what is allowed."""
    return sorted({0 if part == "0" else positive(part) for part in text.split(",")})


def best(samples, higher):
    """Best and median of repeated figures, and the figures."""
    return {"best": (max if higher else min)(samples), "median": statistics.median(samples), "all": samples}


def machine():
    """Where and when."""
    facts = {"cpu": platform.processor() or platform.machine(), "memory_gib": None}
    for path, key, name in (("/proc/cpuinfo", "model name", "cpu"), ("/proc/meminfo", "MemTotal", "memory_gib")):
        try:
            found = re.search(rf"^{key}\s*:\s*(.+)$", Path(path).read_text(), re.M)
        except OSError:
            continue
        if found:
            facts[name] = found.group(1)
    if facts["memory_gib"]:
        facts["memory_gib"] = round(int(facts["memory_gib"].split()[0]) / 2**20, 1)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")
    return {**facts, "cores": cores(), "system": platform.platform(), "busy_before": busy_share(), "date_utc": now}


def busy_share():
    """The share of all cores that is in use while this program waits (None if unknown): proc(5), /proc/stat."""

    def read():
        times = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(times), times[3] + times[4]

    try:
        before = read()
        time.sleep(BUSY_LOOK_S)
        total, idle = (after - first for after, first in zip(read(), before))
    except (OSError, ValueError):
        return None
    return 1 - idle / max(total, 1)


def where(facts):
    """The machine, as two lines."""
    busy = facts["busy_before"]
    others = "unknown how busy" if busy is None else f"{busy:.0%} in use by others before"
    return [
        f"machine: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}",
        f"when:    {facts['date_utc']} UTC, {others}",
    ]


def warn_if_busy(facts):
    """Figures of a shared machine mislead."""
    if (facts["busy_before"] or 0) > BUSY_SHARE:
        say(f"WARNING: others use {facts['busy_before']:.0%} of this machine: the figures will be those of a shared one")


def table(header, rows):
    """A markdown table; the first column to the left, the others to the right."""
    cells = [header, *rows]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(
        str(cell).ljust(width) if i == 0 else str(cell).rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
    ) + " |"
    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def finish(args, report, text):
    """Tells the result."""
    if args.json == "-":
        print(json.dumps(report, indent=2))
        return
    print(text)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
        say(f"everything measured is in {args.json}")


def main(compare):
    """Runs a comparison and turns trouble into a message and an exit code."""
    try:
        compare()
    except Trouble as trouble:
        sys.exit(f"error: {trouble}")
    except KeyboardInterrupt:
        sys.exit(130)

#!/usr/bin/env bash
# Regenerates the tables of "How the phases scale" in ops/docs/benchmarks.md: star beside exact over lengths, blocks and
# anchors, a long star alone, and the saving of the shared anchor. Each group is a run of `stellate bench`, which checks,
# counts and times; here is only what is asked of it. Weights and tokens are random: nothing is downloaded.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ops/bench/scaling.sh [--quick | --full] [--plan] [--only GROUP,…] [--kv FORMAT] [--out FOLDER] [--limit TIME]

  --quick         2 or 3 layers of each shape: once, in about 5 minutes where the default, twice, takes an hour
  --full          all layers everywhere, and blocks of 8,192 up to 256K: hours on two cores
  --plan          print every case with its operations and about how long it takes here, and measure nothing
  --only GROUPS   some of: 1b, saving, 135m, long
  --kv FORMAT     number format of keys and values (default: bf16)
  --out FOLDER    where tables (.md) and lines of JSON (.jsonl) go (default: target/scaling)
  --limit TIME    time of each group, as in 90s, 40min or 2h: what would not end within it is left out

STELLATE names the program (default: target/release/stellate, built if it is missing). Ctrl-C tells what was measured
so far and ends the whole.
TEXT
}

size=default groups=1b,saving,135m,long kv=bf16 out=target/scaling plan=false limit=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick | --full) size=${1#--} ;;
        --plan) plan=true ;;
        --only) groups=$2 && shift ;;
        --kv) kv=$2 && shift ;;
        --out) out=$2 && shift ;;
        --limit) limit=(--time-limit "$2") && shift ;;
        --help | -h) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

cd "$(dirname "$0")/../.."
stellate=${STELLATE:-target/release/stellate}
if [ -z "${STELLATE:-}" ] && [ ! -x "$stellate" ]; then
    cargo build --release -p stellate
fi
mkdir -p "$out"

# All layers of a model are alike, so ratios and exponents are those of the whole; times are of as many layers as stand
# behind the colon.
case $size in
    quick) b1=llama-3.2-1b:3 saving2k=llama-3.2-1b:3 saving8k=llama-3.2-1b:2 m135=smollm-135m:3 long=smollm-135m:3 ;;
    default) b1=llama-3.2-1b saving2k=llama-3.2-1b saving8k=llama-3.2-1b:4 m135=smollm-135m:8 long=smollm-135m:8 ;;
    full) b1=llama-3.2-1b saving2k=llama-3.2-1b saving8k=llama-3.2-1b m135=smollm-135m long=smollm-135m ;;
esac
repeat=2 long_store=7GiB
case $size,$kv in
    quick,*) repeat=1 ;;
    # 1M tokens of all layers take 22.5 GiB in bf16 and about half in q8: as many layers as leave room in 24 GiB.
    full,q8) long_store=13GiB ;;
    full,bf16) long=smollm-135m:15 long_store=13GiB ;;
    *,f32) long=smollm-135m:8 long_store=13GiB ;;
esac

# bench NAME ARGUMENTS: one run, to the terminal and to files.
bench() {
    local name=$1
    shift
    set -- bench --kv "$kv" ${limit[@]+"${limit[@]}"} "$@"
    echo "== $name: stellate $*" >&2
    if $plan; then
        "$stellate" "$@" --plan
    else
        # Ctrl-C is for the program, which then tells what it measured.
        "$stellate" "$@" --json-lines "$out/$name.jsonl" | tee -i "$out/$name.md"
    fi
}

wanted() { case ,$groups, in *,$1,*) true ;; *) false ;; esac }

answers=(--query-tokens 32 --max-tokens 16)
shapes=(--block-tokens 2048,8192 --anchor-tokens 2048,8192 --exact-block-tokens 8192)

if wanted 1b; then
    bench 1b --random-weights $b1 --tokens 8192,32768 "${shapes[@]}" "${answers[@]}" --repeat $repeat
fi
if wanted saving; then
    bench saving-2k --random-weights $saving2k --anchor-saving --block-tokens 2048 --repeat $repeat
    # In f32 64K tokens of all layers take 4 GiB.
    bench saving-8k --random-weights $saving8k --anchor-saving --block-tokens 8192 --repeat $repeat --kv-capacity 5GiB
fi
if wanted 135m; then
    # In f32 128K tokens of all layers take 5.6 GiB.
    bench 135m --random-weights $m135 --tokens 8192,32768,131072 "${shapes[@]}" "${answers[@]}" --repeat $repeat \
        --kv-capacity 6GiB
fi
if wanted long; then
    # Of 8 layers 1M tokens take 6 GiB in bf16.
    bench long --random-weights $long --attention star --tokens 16384,65536,262144,1048576 --block-tokens 2048 \
        "${answers[@]}" --repeat $repeat --kv-capacity $long_store
    if [ $size != quick ]; then
        bench long-8k --random-weights $long --attention star --tokens 131072,262144 --block-tokens 8192 \
            "${answers[@]}" --repeat $repeat --kv-capacity $long_store
    fi
fi
